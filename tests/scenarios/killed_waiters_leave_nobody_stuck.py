"""A hundred processes wait for locks on one file, with flock, lockf, or by opening it r+; waiters and holders are killed at random. A
second later none of the killed is left in the kernel (state D), and the rest get the lock one after the other. (C9, C12)

Holds on a plain directory too.
"""
import fcntl
import os
import random
import signal
import time

from _scenario import main

WAITERS, KILLS = 100, 60


def waiter(index):
    """Holds the lock for a moment when it gets it, and ends."""
    with open("shared", "r+") as f:
        (fcntl.flock, fcntl.lockf)[index % 2](f, fcntl.LOCK_EX)
        time.sleep(0.02)
        if index % 3 == 0:
            f.write(f"{index:04d}")


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "gone"


def scenario():
    with open("shared", "w") as f:
        f.write("0000")
    rng, living, killed = random.Random(1), [], []
    for index in range(WAITERS):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                waiter(index)
                code = 0
            finally:
                os._exit(code)
        living.append(pid)
    time.sleep(0.1)
    for _ in range(KILLS):
        pid = living.pop(0 if rng.random() < 0.3 else rng.randrange(len(living)))  # the eldest is likely to be a holder
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        time.sleep(rng.uniform(0, 0.01))
    time.sleep(1)
    stuck = [(pid, state(pid)) for pid in killed if state(pid) not in ("Z", "X", "gone")]
    assert not stuck, f"a second after SIGKILL: {stuck[:5]}"
    for pid in killed:
        os.waitpid(pid, 0)
    end, codes = time.monotonic() + 60, []
    while living:
        assert time.monotonic() < end, f"{len(living)} waiters never got the lock; states {[state(p) for p in living[:5]]}"
        pid, status = os.waitpid(living[0], os.WNOHANG)
        if pid:
            living.pop(0)
            codes.append(status)
        else:
            time.sleep(0.01)
    assert set(codes) == {0}, f"waiters failed: {sorted(set(codes))}"
    with open("shared") as f:
        assert len(f.read()) == 4
    return f"{len(killed)} of {WAITERS} killed, none stuck, the other {len(codes)} got their turn"


if __name__ == "__main__":
    main(scenario)
