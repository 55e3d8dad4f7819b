"""A counter in a file, ten processes, twenty increments each, in every order in which programs lock, read, write, unlock and close:
    {r+, a+, r then w, O_RDWR|O_CREAT} x {flock, lockf} x {unlock before close, the close unlocks, unlock after close}
Each is correct on a plain directory and must give 200. (C12; C9 for r+)

"After close" means that the data's descriptor is closed while another one still holds the lock. With lockf that close gives the
process's lock up, as POSIX says; it comes after the last write, so the count is right all the same.
"""
import fcntl
import os

from _scenario import main, parallel

PROCESSES, ROUNDS = 10, 20


def number(text):
    return int(text or 0)


def r_plus(path, lock, order):
    holder = open(path, "r+") if order == "after" else None
    with open(path, "r+") as f:
        lock(holder or f, fcntl.LOCK_EX)
        n = number(f.read())
        f.seek(0)
        f.write(str(n + 1))
        f.truncate()
        if order == "before":
            f.flush()
            lock(f, fcntl.LOCK_UN)
    release(holder, lock)


def a_plus(path, lock, order):
    holder = open(path, "a+") if order == "after" else None
    with open(path, "a+") as f:
        lock(holder or f, fcntl.LOCK_EX)
        f.seek(0)
        n = number(f.read())
        f.truncate(0)
        f.write(str(n + 1))
        if order == "before":
            f.flush()
            lock(f, fcntl.LOCK_UN)
    release(holder, lock)


def r_then_w(path, lock, order):
    # An exclusive lockf needs a descriptor that can write.
    with open(path, "r" if lock is fcntl.flock else "r+") as f:
        lock(f, fcntl.LOCK_EX)
        n = number(f.read())
        g = open(path, "w")
        g.write(str(n + 1))
        if order == "before":
            g.flush()
            lock(f, fcntl.LOCK_UN)
            g.close()
            return
        g.close()
        if order == "after":
            lock(f, fcntl.LOCK_UN)


def o_rdwr(path, lock, order):
    holder = open(path, "r+") if order == "after" else None
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    lock(holder or fd, fcntl.LOCK_EX)
    n = number(os.pread(fd, 100, 0))
    os.pwrite(fd, b"%d" % (n + 1), 0)
    if order == "before":
        lock(fd, fcntl.LOCK_UN)
    os.close(fd)
    release(holder, lock)


def release(holder, lock):
    if holder:
        lock(holder, fcntl.LOCK_UN)
        holder.close()


def process(way, path, lock, order):
    for _ in range(ROUNDS):
        way(path, lock, order)


def scenario():
    wrong, ways = [], 0
    for way in (r_plus, a_plus, r_then_w, o_rdwr):
        for lock in (fcntl.flock, fcntl.lockf):
            for order in ("before", "close", "after"):
                path = f"count-{way.__name__}-{lock.__name__}-{order}"
                with open(path, "w") as f:
                    f.write("0")
                parallel([(process, way, path, lock, order)] * PROCESSES)
                with open(path) as f:
                    counted = number(f.read())
                ways += 1
                if counted != PROCESSES * ROUNDS:
                    wrong.append(f"{way.__name__} {lock.__name__} {order}: {counted}")
    assert not wrong, f"of {PROCESSES * ROUNDS}: {'; '.join(wrong)}"
    return f"{ways} ways, {PROCESSES * ROUNDS} of {PROCESSES * ROUNDS} each"


if __name__ == "__main__":
    main(scenario, limit=300)
