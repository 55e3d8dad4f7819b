"""Counts what doesn't depend on the machine: requests that a program waits for, system calls of the daemon, threads woken."""
import contextlib
import os
import re

TRACING = "/sys/kernel/tracing"
# Nobody waits for these: FORGET, RELEASE, RELEASEDIR, INTERRUPT, BATCH_FORGET.
UNWAITED = {2, 18, 29, 36, 42}


class Uncountable(Exception):
    """Why nothing can be counted here."""


class Counter:
    """Events of one mount and its daemon, by an instance of tracefs of its own."""

    def __init__(self, mountpoint, daemon):
        self.directory = f"{TRACING}/instances/commitfs-bench-{os.getpid()}"
        self.daemon = daemon
        device = os.stat(mountpoint).st_dev
        # The number of a FUSE connection is that of its anonymous device.
        self.connection = os.minor(device)
        if not os.path.isdir(f"{TRACING}/events/fuse"):
            raise Uncountable(f"{TRACING} has no events of fuse (root, Linux 6.9 or later, mount -t tracefs none {TRACING})")

    def _write(self, name, text):
        with open(f"{self.directory}/{name}", "w") as f:
            f.write(text)

    def __enter__(self):
        os.mkdir(self.directory)
        self._write("buffer_size_kb", "8192")
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._write("tracing_on", "0")
            os.rmdir(self.directory)

    def count(self, operations, do):
        """Does it, and gives how often what happened for each of its operations."""
        threads = [int(name) for name in os.listdir(f"/proc/{self.daemon}/task")]
        of_daemon = " || ".join(f"common_pid == {thread}" for thread in threads)
        woken = " || ".join(f"pid == {thread}" for thread in threads)
        self._write("events/fuse/fuse_request_send/filter", f"connection == {self.connection}")
        self._write("events/raw_syscalls/sys_enter/filter", of_daemon)
        # The program wakes the dispatcher; what the daemon wakes of its own is on the way.
        self._write("events/sched/sched_waking/filter", f"({woken}) && ({of_daemon})")
        events = ["fuse/fuse_request_send", "raw_syscalls/sys_enter", "sched/sched_waking"]
        self._write("trace", "")
        for event in events:
            self._write(f"events/{event}/enable", "1")
        try:
            do()
        finally:
            for event in events:
                self._write(f"events/{event}/enable", "0")
        with open(f"{self.directory}/trace") as f:
            text = f.read()
        codes = [int(code) for code in re.findall(r"fuse_request_send: .*? opcode (\d+)", text)]
        return {
            "requests": sum(code not in UNWAITED for code in codes) / operations,
            "system calls": text.count("sys_enter:") / operations,
            "threads woken": text.count("sched_waking:") / operations,
        }
