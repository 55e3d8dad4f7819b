"""Programs that need several files at once lock them in whatever order they come. With lockf the kernel notices a circle and
answers EDEADLK, upon which the program lets go and starts again; with flock the program tries without waiting and backs off.
Nothing may wait for ever, and no update of either file is lost. (C2, C9, C12)

Holds on a plain directory too.
"""
import errno
import fcntl
import random
import time

from _scenario import main, parallel

PROCESSES, ROUNDS, FILES = 6, 15, ("a.count", "b.count", "c.count")


def with_lockf(handles):
    """True when all are locked; False when the kernel saw a circle, with all of them let go."""
    for handle in handles:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as e:
            if e.errno != errno.EDEADLK:
                raise
            return False
        time.sleep(0.002)  # long enough for somebody to lock them the other way round
    return True


def with_flock(handles):
    for handle in handles:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def process(way, who):
    rng, retries = random.Random(who), 0
    for _ in range(ROUNDS):
        while True:
            names = rng.sample(FILES, 2)
            handles = [open(f"{way.__name__}-{name}", "r+") for name in names]
            if way(handles):
                for handle in handles:
                    n = int(handle.read())
                    handle.seek(0)
                    handle.write(str(n + 1))
                    handle.flush()
                for handle in handles:
                    handle.close()
                break
            retries += 1
            for handle in handles:
                handle.close()
            time.sleep(rng.uniform(0, 0.01))
    return retries


def scenario():
    told = []
    for way in (with_lockf, with_flock):
        names = [f"{way.__name__}-{name}" for name in FILES]
        for name in names:
            with open(name, "w") as f:
                f.write("0")
        retries = sum(parallel([(process, way, who) for who in range(PROCESSES)], limit=60))
        counts = []
        for name in names:
            with open(name) as f:
                counts.append(int(f.read()))
        assert sum(counts) == 2 * PROCESSES * ROUNDS, f"{way.__name__}: {counts} make {sum(counts)}, not {2 * PROCESSES * ROUNDS}"
        told.append(f"{way.__name__[5:]} started again {retries} times")
    return f"{PROCESSES} processes took 2 of 3 files {ROUNDS} times; {', '.join(told)}; no update lost"


if __name__ == "__main__":
    main(scenario)
