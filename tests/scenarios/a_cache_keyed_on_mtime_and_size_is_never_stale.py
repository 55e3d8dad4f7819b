"""Programs keep parsed results in memory and look at (mtime, size) to see whether the file has changed. Updates here have all
the same size and follow each other at once, so only the mtime can tell them apart: it grows with every commit, and an
unchanged key never stands for an older content. (C1, C2, C8)

A plain directory may fail: reads are torn, and two saves within one clock tick have the same mtime.
"""
import os

from _scenario import fork, main, parallel

UPDATES = 600


def writer(saved, done):
    last = os.stat("result.csv").st_mtime_ns
    for number in range(1, UPDATES + 1):
        with open("result.csv", "w") as f:
            f.write(f"{number:08d}\n")
            f.flush()
            f.write(f"{number:08d}\n")
        stat = os.stat("result.csv")
        assert stat.st_mtime_ns > last, f"save {number}: mtime {stat.st_mtime_ns} after {last}"
        assert stat.st_size == 18
        last, saved.value = stat.st_mtime_ns, number
    done.set()


def reader(saved, done):
    cache, hits, reads = {}, 0, 0
    while not done.is_set():
        acknowledged = saved.value
        stat = os.stat("result.csv")
        key = stat.st_mtime_ns, stat.st_size
        if key in cache:
            hits += 1
        else:
            with open("result.csv") as f:
                opened = os.fstat(f.fileno())
                lines = f.read().split("\n")
                assert len(lines) == 3 and lines[0] == lines[1], f"torn: {lines}"
            key = opened.st_mtime_ns, opened.st_size  # of what was read, not of what stat saw a moment ago
            assert cache.get(key, int(lines[0])) == int(lines[0]), f"one mtime for {cache[key]} and {lines[0]}"
            cache[key] = int(lines[0])
            reads += 1
        assert cache[key] >= acknowledged, f"the cache gives {cache[key]} although {acknowledged} was saved before"
    return hits, reads


def scenario():
    with open("result.csv", "w") as f:
        f.write("00000000\n00000000\n")
    saved, done = fork.Value("l", 0), fork.Event()
    counts = parallel([(writer, saved, done)] + [(reader, saved, done)] * 3)[1:]
    return f"{UPDATES} updates of one size; {sum(h for h, _ in counts)} hits, {sum(r for _, r in counts)} reads, none stale"


if __name__ == "__main__":
    main(scenario)
