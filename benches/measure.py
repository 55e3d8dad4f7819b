"""Measures a row: blocks on the plain directory, the mount and bindfs in turns, with files of their own in each round."""
import contextlib
import os
import shutil
import statistics
import struct
import subprocess
import time

QOS = "/dev/cpu_dma_latency"


@contextlib.contextmanager
def polling():
    """Idle processors poll meanwhile, so that waking one costs nothing. Gives whether that could be had."""
    try:
        held = os.open(QOS, os.O_WRONLY)
    except OSError:
        yield False
        return
    try:
        os.write(held, struct.pack("i", 0))
        yield True
    finally:
        os.close(held)


class Worker:
    """A process that does operations, the same one all the time."""

    def __init__(self, binary):
        self.binary = binary
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def order(self, operation, count, threads, path):
        """Nanoseconds for all, and the median and the 99th percentile of one."""
        self.process.stdin.write(f"{operation} {count} {threads} {path}\n")
        self.process.stdin.flush()
        return parse(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)


def parse(answer):
    if not answer or answer.startswith("error"):
        raise RuntimeError(f"the worker says: {answer.strip() or 'nothing'}")
    return [int(word) for word in answer.split()]


def once(binary, operation, count, path):
    totals = []
    for _ in range(count):
        line = subprocess.run([binary, "once", operation, path], check=True, capture_output=True, text=True)
        totals.append(parse(line.stdout)[0])
    totals.sort()
    return sum(totals), totals[len(totals) // 2], totals[-1]


class Side:
    """One of the directories that are compared."""

    def __init__(self, name, directory, binary):
        self.name = name
        self.directory = directory
        self.worker = Worker(binary)

    def block(self, row, number, state):
        """One block of a row in a directory of its own: nanoseconds of one operation, median and 99th percentile."""
        place = os.path.join(self.directory, f"{number}")
        os.mkdir(place)
        try:
            return self._block(row, place, state)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _block(self, row, place, state):
        if row.program:
            if row.prepare:
                row.prepare(place, state)
            os.sync()
            begun = time.perf_counter_ns()
            row.program(place, state)
            taken = time.perf_counter_ns() - begun
            return taken, taken, taken
        path = self.prepare(row, place)
        operation = row.operation_of(self.name)
        with beside(path) if row.beside else contextlib.nullcontext():
            if row.once:
                total, median, slow = once(self.worker.binary, operation, row.count, path)
            else:
                total, median, slow = self.worker.order(operation, row.count, row.threads, path)
        return total / row.count / row.threads, median, slow

    def prepare(self, row, place):
        """What a row finds: its file, or its many files, or a large one. Gives the path for its orders."""
        # Large files have the name of a checkpoint: the kernel may not read by itself what others may add lines to.
        path = os.path.join(place, "file.json" if row.content.startswith(b"{") else "weights.pt" if row.amount else "file")
        if row.operation == "create":
            return place
        if row.operation.endswith("-each"):
            self.worker.order("create", row.count, 1, place)
            return place
        if row.amount:
            # What is written replaces what is there, as a program does that saves again and again.
            self.worker.order(f"write-{row.amount}:{1 << 20}", 1, 1, path)
        elif row.content:
            names = [path] if row.threads == 1 else [f"{path}{n}" for n in range(row.threads)]
            for name in names:
                with open(name, "wb") as f:
                    f.write(row.content)
            # Once, so that a habitual writer is one.
            if not row.once and not row.beside:
                self.worker.order(row.operation_of(self.name), 1, row.threads, path)
        os.sync()
        # At rest, as files mostly are: what was committed just now is asked for each time.
        time.sleep(0.15)
        return path


@contextlib.contextmanager
def beside(path):
    """A writer that has written and not closed."""
    with open(path, "r+b") as f:
        f.write(b"y")
        f.flush()
        yield


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, statistics.median(values), high


def measure(row, sides, rounds, state):
    """The row on all sides, in turns; each round begins with another one. Gives times and ratios to the plain directory."""
    sides = [side for side in sides if row.bindfs or side.name != "bindfs"]
    times = {side.name: [] for side in sides}
    slow = {side.name: [] for side in sides}
    for number in range(rounds):
        shift = number % len(sides)
        for side in sides[shift:] + sides[:shift]:
            mean, _, late = side.block(row, number, state)
            times[side.name].append(mean)
            slow[side.name].append(late)
    result = {"row": row.name, "ns": {name: statistics.median(taken) for name, taken in times.items()}}
    result["p99 ns"] = {name: statistics.median(taken) for name, taken in slow.items()}
    result["amount"] = row.amount
    result["ratio"] = {}
    for name in times:
        if name == "plain":
            continue
        pairs = [(theirs, plain) for theirs, plain in zip(times[name], times["plain"])]
        # Of what is told as a speed, more is better.
        result["ratio"][name] = quartiles([plain / theirs if row.amount else theirs / plain for theirs, plain in pairs])
    return result
