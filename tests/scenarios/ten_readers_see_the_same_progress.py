"""Ten processes read one progress.json again and again; all see the same document, and reading changes nothing. (C1, C8)

Holds on a plain directory too.
"""
import os

from _scenario import load, main, padded, parallel, save, whole

ROUNDS = 300


def reader():
    seen = {whole(load("progress.json")) for _ in range(ROUNDS)}
    with open("progress.json") as a, open("progress.json") as b:  # two descriptions side by side
        assert a.read() == b.read()
    return seen


def scenario():
    save("progress.json", padded(7))
    before = os.stat("progress.json")
    seen = parallel([(reader,)] * 10)
    after = os.stat("progress.json")
    assert all(s == {7} for s in seen), seen
    assert (before.st_mtime_ns, before.st_ino, before.st_size) == (after.st_mtime_ns, after.st_ino, after.st_size), "reading changed the file"
    assert os.listdir() == ["progress.json"], os.listdir()
    return f"10 readers, {10 * ROUNDS} reads, one document"


if __name__ == "__main__":
    main(scenario)
