"""Someone holds the dataset's lock. A try-lock gives up at once, one with a limit after its limit; both can read who holds it, also
after the holder was killed, and then take the lock over. The same with flock -n and flock -w. (C6, C12, C14)

Holds on a plain directory too.
"""
import os
import signal
import subprocess
import time

from _dataset import Timeout, check, fetch, lock, owner_of
from _scenario import main


def holder(path):
    """A process that takes the lock and keeps it; its pid, once it has it."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lock(path):
            os.write(tell, b"1")
            time.sleep(100)
        os._exit(0)
    os.close(tell)
    assert os.read(told, 1) == b"1"
    os.close(told)
    return pid


def gives_up(limit):
    begun = time.monotonic()
    try:
        fetch("d.bin", "if_missing", limit=limit)
        raise AssertionError("the lock was given to two")
    except Timeout:
        return time.monotonic() - begun


def scenario():
    os.mkdir("cache")
    pid = holder("cache/d.bin.lock")
    assert owner_of("cache/d.bin.lock") == pid, f"the lock file names {owner_of('cache/d.bin.lock')}, its holder is {pid}"
    tried, waited = gives_up(0), gives_up(0.5)
    assert tried < 0.3, f"a try-lock took {tried:.2f} s"
    assert 0.5 <= waited < 0.8, f"a lock with a limit of 0.5 s took {waited:.2f} s"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with open("cache/d.bin.lock") as f:
        assert f.read() == f"{pid}\n", "the pid is gone with its writer"
    begun = time.monotonic()
    check(fetch("d.bin", "if_missing", limit=5), "d.bin")
    taken = time.monotonic() - begun
    assert os.listdir("cache") == ["d.bin"], os.listdir("cache")

    sleeper = subprocess.Popen(["flock", "held", "-c", "echo held; sleep 100"], stdout=subprocess.PIPE, start_new_session=True)
    sleeper.stdout.readline()
    for command, least, most in ((["flock", "-n"], 0, 0.3), (["flock", "-w", "0.5"], 0.5, 0.8), (["timeout", "0.5", "flock"], 0.5, 0.8)):
        begun = time.monotonic()
        code = subprocess.run([*command, "held", "true"], timeout=20).returncode
        seconds = time.monotonic() - begun
        assert code in (1, 124) and least <= seconds < most, f"{' '.join(command)}: code {code} after {seconds:.2f} s"
    os.killpg(sleeper.pid, signal.SIGKILL)
    sleeper.wait(10)
    assert subprocess.run(["flock", "-w", "5", "held", "true"], timeout=20).returncode == 0, "a dead holder keeps its lock"
    return f"try {tried * 1000:.0f} ms, limit of 500 ms {waited * 1000:.0f} ms, taken over from a dead holder in {taken * 1000:.0f} ms"


if __name__ == "__main__":
    main(scenario)
