"""Policy "always": every process fetches the dataset again, in place, one after the other under the lock. Programs that read
without the lock, by name or through a copy, never see a half-fetched file; a mirror made by link keeps the version it
was linked to. (C1, C2, C8)

A plain directory fails: the file is empty or short while it is fetched again.
"""
import os

from _dataset import check, fetch, mirror, notes
from _scenario import fork, main, parallel

PROCESSES, ROUNDS, KEY = 5, 8, "train.bin"


def fetcher(running):
    for _ in range(ROUNDS):
        check(mirror(fetch(KEY, "always", limit=60), "link"), KEY)
        os.unlink(f"mirror/{KEY}-{os.getpid()}")
    with running.get_lock():
        running.value -= 1


def reader(running):
    reads = 0
    while running.value:
        check(f"cache/{KEY}", KEY)
        check(mirror(f"cache/{KEY}", "copy"), KEY)
        reads += 2
    return reads


def scenario():
    os.mkdir("cache")
    os.mkdir("mirror")
    fetch(KEY, "if_missing")
    running = fork.Value("i", PROCESSES)
    reads = parallel([(fetcher, running)] * PROCESSES + [(reader, running)] * 3)[PROCESSES:]
    assert len(notes()) == 1 + PROCESSES * ROUNDS, f"{len(notes())} fetches"
    assert os.listdir("cache") == [KEY], f"left over: {os.listdir('cache')}"
    return f"{PROCESSES * ROUNDS} fetches over the same name, {sum(reads)} reads, all whole"


if __name__ == "__main__":
    main(scenario)
