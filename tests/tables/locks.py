"""Every advisory lock beside every other: flock, fcntl and open file description (OFD) locks of threads and processes, waiting or
not, over ranges; what F_GETLK names; cycles; conversions; closes. The test in lock_tables.rs runs it on the mount and on a plain
directory, and compares what it prints.

Where a request has to wait is decided by asking without waiting first: so no cell depends on how fast an answer comes.
"""
import errno
import fcntl
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time

GET = {"fcntl": fcntl.F_GETLK, "ofd": 36}
SET = {"fcntl": fcntl.F_SETLK, "ofd": 37}
WAIT = {"fcntl": fcntl.F_SETLKW, "ofd": 38}
TYPES = {"shared": fcntl.F_RDLCK, "alone": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
NAMES = {number: name for name, number in TYPES.items()}
FLOCKS = {"shared": fcntl.LOCK_SH, "alone": fcntl.LOCK_EX, "none": fcntl.LOCK_UN}
LIMIT = 60  # seconds for what must come


def record(mode, start, length):
    return struct.pack("hhqqi4x", TYPES[mode], os.SEEK_SET, start, length, 0)


class Server:
    """A process with a thread for each actor. Descriptors are the process's: all its actors use them."""

    def __init__(self, threads):
        pairs = [socket.socketpair() for _ in range(threads)]
        self.pid = os.fork()
        if not self.pid:
            self.files = {}
            serving = [threading.Thread(target=self.serve, args=(there,)) for _, there in pairs]
            for here, _ in pairs:
                here.close()
            for thread in serving:
                thread.start()
            for thread in serving:
                thread.join()
            os._exit(0)
        self.actors = [Actor(here) for here, _ in pairs]
        for _, there in pairs:
            there.close()

    def serve(self, link):
        for line in link.makefile("r"):
            what, *args = json.loads(line)
            try:
                said = getattr(self, what)(link, *args)
            except OSError as error:
                said = errno.errorcode[error.errno]
            link.sendall((json.dumps(said) + "\n").encode())

    def open(self, _, name, path, flags):
        self.files[name] = os.open(path, flags, 0o644)
        return "ok"

    def close(self, _, name):
        os.close(self.files.pop(name))
        return "ok"

    def dup(self, _, name, other):
        self.files[other] = os.dup(self.files[name])
        return "ok"

    def take(self, _, name, path):
        """A descriptor that another process sends: the same open file description."""
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            self.files[name] = socket.recv_fds(server, 1, 1)[1][0]
        return "ok"

    def send(self, _, name, path):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            peer, _ = server.accept()
            socket.send_fds(peer, [b"x"], [self.files[name]])
            peer.close()
        return "ok"

    def lock(self, _, name, call, mode, start, length, wait):
        if call == "flock":
            fcntl.flock(self.files[name], FLOCKS[mode] | (0 if wait else fcntl.LOCK_NB))
        else:
            fcntl.fcntl(self.files[name], (WAIT if wait else SET)[call], record(mode, start, length))
        return "ok"

    def get(self, _, name, call, mode, start, length):
        kind, _, first, many, pid = struct.unpack("hhqqi4x", fcntl.fcntl(self.files[name], GET[call], record(mode, start, length)))
        return [NAMES[kind], first, many, pid] if NAMES[kind] != "none" else ["none", 0, 0, 0]

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Actor:
    def __init__(self, link):
        self.link, self.answers = link, link.makefile("r")

    def start(self, *what):
        self.link.sendall((json.dumps(what) + "\n").encode())

    def finish(self, limit=LIMIT):
        """The answer; None where it hasn't come after so many seconds."""
        return json.loads(self.answers.readline()) if select.select([self.link], [], [], limit)[0] else None

    def __call__(self, *what):
        self.start(*what)
        said = self.finish()
        if said is None:
            raise SystemExit(f"no answer to {what}")
        return said


FILES = {  # what stands there before, how it is opened
    "f": ("0123456789" * 4, os.O_RDWR),
    "added": ("0123456789\n" * 4, os.O_RDWR | os.O_APPEND),
    "in-place.log": ("0123456789\n" * 4, os.O_RDWR),
    "new": (None, os.O_RDWR | os.O_CREAT),
}
WHOLE = (0, 0)
FIRST = (0, 10)
RANGES = [(WHOLE, WHOLE), (FIRST, FIRST), (FIRST, (5, 10)), (FIRST, (10, 10)), (FIRST, (5, 0)), (FIRST, WHOLE), (WHOLE, FIRST)]
CALLS = ("flock", "fcntl", "ofd")
MODES = ("shared", "alone")
WHO = ("threads, one description", "threads", "processes, one description", "processes")


def ranges(one, other):
    """Pairs of ranges: flock's is always the whole."""
    pairs = [(a if one != "flock" else WHOLE, b if other != "flock" else WHOLE) for a, b in RANGES]
    return sorted(set(pairs))


def opened(who, path):
    """Two actors with a description `x` each, or one of both."""
    text, flags = FILES[path]
    if text is not None:
        with open(path, "w") as f:
            f.write(text)
    elif os.path.exists(path):
        os.unlink(path)
    servers = [Server(2)] if who.startswith("threads") else [Server(1), Server(1)]
    one, other = [actor for server in servers for actor in server.actors]
    a, b = ("x", "y") if who == "threads" else ("x", "x")
    one("open", a, path, flags)
    if who == "processes, one description":
        path = os.path.join("/tmp", f"locks-{os.getpid()}")
        one.start("send", a, path)
        while not os.path.exists(path):
            time.sleep(.001)
        while other("take", b, path) != "ok":
            time.sleep(.001)
        one.finish()
        os.unlink(path)
    elif who != "threads, one description":
        # Under a lock nobody waits for the writer slot.
        one("lock", a, "flock", "alone", 0, 0, False)
        other("open", b, path, flags)
        one("lock", a, "flock", "none", 0, 0, False)
    return servers, (one, a), (other, b)


def pairs(path, waiting):
    for who in WHO:
        servers, (one, a), (other, b) = opened(who, path)
        for first, second in itertools.product(CALLS, CALLS):
            for (held, wanted), have, want in itertools.product(ranges(first, second), MODES, MODES):
                granted = one("lock", a, first, have, *held, False)
                said = other("lock", b, second, want, *wanted, False)
                print(path, "|", who, "|", first, have, held, "|", second, want, wanted, "|", granted, said, end=" ")
                if waiting:
                    other("lock", b, second, "none", *wanted, False)
                    # An unlock by the same description may have taken the first one's, too.
                    one("lock", a, first, have, *held, False)
                    other.start("lock", b, second, want, *wanted, True)
                    early = other.finish(.02 if said == "EAGAIN" else LIMIT)
                    one("lock", a, first, "none", *held, False)
                    print("waits," if early is None else "at once,", early or other.finish(), end="")
                print()
                for actor, name in ((one, a), (other, b)):
                    for call in CALLS:
                        actor("lock", name, call, "none", 0, 0, False)
        for server in servers:
            server.kill()


def any_order(seed):
    """Locks of four owners at random; F_GETLK names what stands first."""
    print("seed", seed)
    draw = random.Random(seed)
    servers = [Server(1) for _ in range(3)]
    with open("many", "w") as f:
        f.write("0123456789" * 10)
    owners = []
    for number, server in enumerate(servers):
        actor = server.actors[0]
        for name in ("x", "y"):
            actor("open", name, "many", os.O_RDWR)
            actor("lock", name, "ofd", "shared", 0, 1, False)
        # A process has one set of fcntl locks, and each description one of its own.
        owners += [(number, actor, "x", "fcntl"), (number, actor, "x", "ofd"), (number, actor, "y", "ofd")]
    for _, actor, name, call in owners:
        actor("lock", name, call, "none", 0, 0, False)
    holders = [0, -1] + [server.pid for server in servers]
    for step in range(150):
        number, actor, name, call = draw.choice(owners)
        mode = draw.choice(("shared", "shared", "alone", "none"))
        start, length = draw.randrange(40), draw.choice((1, 2, 5, 10, 0))
        said = actor("lock", name, call, mode, start, length, False)
        print(step, number, name, call, mode, start, length, said)
        for number, actor, name, call in owners:
            asked = draw.choice((("alone", 0, 0), ("alone", 10, 15), ("shared", 0, 0), ("shared", 7, 1)))
            kind, first, many, pid = actor("get", name, call, *asked)
            # Of an OFD lock the mount names the process, where the plain directory says -1.
            print("   ", number, name, call, kind, first, many, pid in holders)
        own = draw.choice([owner for owner in owners if owner[3] == "ofd"])
        print("   ", "own", own[1]("get", own[2], "ofd", "none", 0, 0)[:3])
    for server in servers:
        server.kill()


def cycles():
    """Each holds one, and wants the next one's."""
    for call, many, threads in itertools.product(CALLS, (2, 3), (False, True)):
        if call == "fcntl" and threads:
            continue  # one owner
        servers = [Server(many)] if threads else [Server(1) for _ in range(many)]
        actors = [actor for server in servers for actor in server.actors]
        paths = [f"cycle{n}" for n in range(many)] if call == "flock" else ["cycle"] * many
        for path in paths:
            with open(path, "w") as f:
                f.write("0123456789" * 4)
        for n, actor in enumerate(actors):
            for m, path in enumerate(paths):
                actor("open", f"{n}.{m}", path, os.O_RDONLY if call == "flock" else os.O_RDWR)
                if call != "flock":
                    actor("lock", f"{n}.{m}", call, "alone", n, 1, False)
                    break
            if call == "flock":
                actor("lock", f"{n}.{n}", call, "alone", 0, 0, False)
        for n, actor in enumerate(actors):
            wanted = (n + 1) % many
            if call == "flock":
                actor.start("lock", f"{n}.{wanted}", call, "alone", 0, 0, True)
            else:
                actor.start("lock", f"{n}.0", call, "alone", wanted, 1, True)
        end = time.monotonic() + 1
        said = [actor.finish(max(0, end - time.monotonic())) for actor in actors]
        print("cycle of", many, call, "threads" if threads else "processes", "|", sorted(map(str, said)))
        for server in servers:
            server.kill()


def hand_overs():
    """One waits for the other, who gives way and then waits for the first: no cycle at any instant."""
    for call, threads in (("fcntl", False), ("ofd", False), ("ofd", True)):
        servers = [Server(2)] if threads else [Server(1), Server(1)]
        one, other = [actor for server in servers for actor in server.actors]
        with open("turns", "w") as f:
            f.write("0123456789")
        for name, actor in (("x", one), ("y", other)):
            actor("open", name, "turns", os.O_RDWR)
            actor("lock", name, call, "alone", 5 if name == "y" else 1, 1, False)
        said = []
        for _ in range(60):
            other.start("lock", "y", call, "alone", 1, 1, True)
            one("lock", "x", call, "none", 1, 1, False)
            one.start("lock", "x", call, "alone", 5, 1, True)
            said.append(other.finish())
            said.append(other("lock", "y", call, "none", 0, 0, False))
            said.append(one.finish())
            one("lock", "x", call, "none", 0, 0, False)
            said += [one("lock", "x", call, "alone", 1, 1, False), other("lock", "y", call, "alone", 5, 1, False)]
        print("hand over", call, threads, sorted(set(map(str, said))))
        for server in servers:
            server.kill()


def crowd():
    """Threads that each have a description of their own and take two ranges in one order: nobody ever waits in a cycle."""
    with open("crowd", "w") as f:
        f.write("0123456789")
    for call in ("ofd", "flock"):
        said = set()

        def work():
            fd = os.open("crowd", os.O_RDWR | os.O_APPEND)
            for _ in range(50):
                for start in (1, 5):
                    try:
                        if call == "ofd":
                            fcntl.fcntl(fd, WAIT["ofd"], record("alone", start, 1))
                        else:
                            fcntl.flock(fd, fcntl.LOCK_EX)
                        said.add("ok")
                    except OSError as error:
                        said.add(errno.errorcode[error.errno])
                fcntl.fcntl(fd, SET["ofd"], record("none", 0, 0)) if call == "ofd" else fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("crowd", call, sorted(said))


def conversions():
    """What is left of a shared lock whose holder wanted it alone, in vain or not; and what closes give back."""
    for call, mode, again in itertools.product(CALLS, MODES, MODES):
        servers = [Server(1) for _ in range(3)]
        one, other, third = [server.actors[0] for server in servers]
        with open("converted", "w") as f:
            f.write("0123456789")
        for actor in (one, other, third):
            actor("open", "x", "converted", os.O_RDWR | os.O_APPEND)
        said = [one("lock", "x", call, mode, 0, 0, False), other("lock", "x", call, mode, 0, 0, False),
                one("lock", "x", call, again, 0, 0, False), third("lock", "x", call, "shared", 0, 0, False),
                third("lock", "x", call, "none", 0, 0, False), other("lock", "x", call, "none", 0, 0, False),
                third("lock", "x", call, "alone", 0, 0, False), one("lock", "x", call, mode, 0, 0, False)]
        print("conversion", call, mode, again, said)
        for server in servers:
            server.kill()
    for call, how in itertools.product(CALLS, ("a duplicate", "another description", "both", "the first of two", "killed")):
        servers = [Server(1), Server(1)]
        one, other = [server.actors[0] for server in servers]
        with open("closed", "w") as f:
            f.write("0123456789")
        for actor in (one, other):
            actor("open", "x", "closed", os.O_RDWR | os.O_APPEND)
        one("dup", "x", "y") if how != "another description" else one("open", "y", "closed", os.O_RDWR | os.O_APPEND)
        said = [one("lock", "x", call, "alone", 0, 0, False)]
        if how == "killed":
            servers.pop(0).kill()
        else:
            for name in {"both": "xy", "the first of two": "x"}.get(how, "y"):
                one("close", name)
        # The last close of a description reaches the daemon when it has returned.
        said.append(other("lock", "x", call, "alone", 0, 0, False))
        print("close of", how, call, said)
        for server in servers:
            server.kill()


def main():
    """The first argument says which part."""
    part = sys.argv[1]
    if part == "pairs":
        pairs("f", True)
    elif part == "files":
        for path in list(FILES)[1:]:
            pairs(path, False)
    elif part == "order":
        for seed in range(4):
            any_order(seed)
    else:
        cycles()
        hand_overs()
        crowd()
        conversions()


if __name__ == "__main__":
    main()
