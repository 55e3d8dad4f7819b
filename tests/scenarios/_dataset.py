"""A dataset cache as programs have it: a directory of fetched files, a lock file made with O_EXCL that holds its owner's pid, and
a mirror that takes entries over by link or by copy."""
import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager


def content(key):
    return key.encode() + hashlib.sha256(key.encode()).digest() * 8192


class Timeout(Exception):
    pass


def alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


@contextmanager
def lock(path, limit=None):
    """limit None: wait for ever; 0: only try; else seconds until Timeout. A dead owner's lock is taken over."""
    begun = time.monotonic()
    while True:
        try:
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            owner = owner_of(path)
            if owner and not alive(owner):
                take_over(path)
                continue
            if limit is not None and time.monotonic() - begun >= limit:
                raise Timeout(f"{path} is held by {owner}") from None
            time.sleep(0.005)
    os.write(fd, b"%d\n" % os.getpid())
    os.close(fd)
    try:
        yield
    finally:
        os.unlink(path)


def take_over(path):
    """Removes a dead owner's lock. Of several that found it dead only one may, and never a lock that was made since."""
    with open("takeover.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        owner = owner_of(path)
        if owner and not alive(owner):
            os.unlink(path)


def owner_of(path):
    """The pid in a lock file; None while its owner has not written it, or when it is gone."""
    try:
        with open(path) as f:
            return int(f.read() or 0) or None
    except FileNotFoundError:
        return None


def fetch(key, policy, limit=None):
    """The path of a cached file; downloads it when the policy ("if_missing" or "always") says so."""
    path = os.path.join("cache", key)
    with lock(path + ".lock", limit):
        if policy == "always" or not os.path.exists(path):
            note(f"fetched {key}")
            data = content(key)
            with open(path, "wb") as f:  # in place, piece by piece, as from a socket
                for start in range(0, len(data), 65536):
                    f.write(data[start:start + 65536])
                    f.flush()
    return path


def mirror(path, way):
    target = os.path.join("mirror", f"{os.path.basename(path)}-{os.getpid()}")
    if way == "link":
        os.link(path, target)
    else:
        shutil.copy2(path, target)
    return target


def check(path, key):
    with open(path, "rb") as f:
        data = f.read()
    assert data == content(key), f"{path}: {len(data)} bytes that are not the dataset"


def note(line):
    fd = os.open("fetches.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def notes():
    with open("fetches.log") as f:
        return f.read().splitlines()
