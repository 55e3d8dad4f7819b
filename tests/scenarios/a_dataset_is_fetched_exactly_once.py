"""Twenty processes want the same three datasets at the same time, "if_missing": under a lock file made with O_EXCL, each dataset is
fetched exactly once, everyone finds it whole, and mirrors it by link or by copy. (C2, C6, C8)

Holds on a plain directory too.
"""
import os

from _dataset import check, content, fetch, mirror, notes
from _scenario import main, parallel

PROCESSES, KEYS = 20, ("train.bin", "valid.bin", "vocab.json.bin")


def process(who):
    for key in KEYS[who % 3:] + KEYS[:who % 3]:
        path = fetch(key, "if_missing", limit=60)
        check(path, key)
        check(mirror(path, "link" if who % 2 else "copy"), key)


def scenario():
    os.mkdir("cache")
    os.mkdir("mirror")
    parallel([(process, who) for who in range(PROCESSES)])
    assert sorted(notes()) == sorted(f"fetched {key}" for key in KEYS), notes()
    assert sorted(os.listdir("cache")) == sorted(KEYS), f"left over: {os.listdir('cache')}"
    mirrored = os.listdir("mirror")
    assert len(mirrored) == PROCESSES * len(KEYS)
    for key in KEYS:
        stat = os.stat(f"cache/{key}")
        assert stat.st_size == len(content(key)) and stat.st_nlink == 1 + PROCESSES // 2, f"{key} has {stat.st_nlink} links"
    return f"{PROCESSES} processes, {len(KEYS)} datasets, {len(notes())} fetches, {len(mirrored)} mirrored files, all whole"


if __name__ == "__main__":
    main(scenario)
