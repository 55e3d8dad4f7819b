"""The frame of a scenario: `python3 NAME.py DIR` runs one function in a fresh directory below DIR, under a time limit.

It prints one line, removes what it made, and ends with 0 (the claim holds), 1 (it does not) or 2 (it could not run). The
scenarios themselves are ordinary programs: none knows what kind of file system DIR is on.
"""
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback

fork = multiprocessing.get_context("fork")


def main(scenario, limit=120):
    """Runs the scenario in a child in a session of its own, so that whatever hangs can be killed."""
    name = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(f"usage: {name}.py DIR\n\n{sys.modules['__main__'].__doc__}", file=sys.stderr)
        sys.exit(2)
    try:
        directory = tempfile.mkdtemp(prefix=f"{name[:20]}-", dir=os.path.abspath(sys.argv[1]))
    except OSError as e:
        print(f"{name}: cannot run: {e}", file=sys.stderr)
        sys.exit(2)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        _child(scenario, directory, writer)
    os.close(writer)
    begun = time.monotonic()
    try:
        code = _wait(child, begun + limit)
        os.set_blocking(reader, False)
        try:
            text = os.read(reader, 65536).decode()
        except BlockingIOError:
            text = ""
    finally:
        try:
            os.killpg(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            subprocess.run(["rm", "-rf", directory], stdin=subprocess.DEVNULL, timeout=30)
        except subprocess.TimeoutExpired:
            print(f"{name}: cannot remove {directory}", file=sys.stderr)
    if code is None:
        text = f"no end within {limit} s"
    print(f"{'ok    ' if code == 0 else 'FAILED'} {name} ({time.monotonic() - begun:.1f} s): {text}", flush=True)
    os._exit(0 if code == 0 else 1)


def _child(scenario, directory, report):
    code = 1
    try:
        os.chdir(directory)
        text, code = scenario() or "", 0
    except BaseException as e:
        text = in_one_line(e)
    os.write(report, text.encode()[:60000])
    os._exit(code)


def in_one_line(error):
    if isinstance(error, AssertionError) and str(error):
        return str(error).replace("\n", " ")
    here = [f for f in traceback.extract_tb(error.__traceback__) if os.path.dirname(f.filename) == os.path.dirname(__file__)]
    where = ", ".join(f"{os.path.basename(f.filename)}:{f.lineno}" for f in here[1:] or here)
    return f"{type(error).__name__}: {error} ({where})".replace("\n", " ")


def _wait(child, deadline):
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _job(connection, go, function, arguments):
    go.wait()
    try:
        connection.send((None, function(*arguments)))
    except BaseException as e:
        connection.send((in_one_line(e), None))


def parallel(jobs, limit=100):
    """Runs each (function, *arguments) in a process of its own, all let go at once; what they returned, in order."""
    go, started = fork.Event(), []
    for function, *arguments in jobs:
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_job, args=(theirs, go, function, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    go.set()
    end, results = time.monotonic() + limit, []
    for process, ours in started:
        assert ours.poll(max(0, end - time.monotonic())), f"a process is still not done after {limit} s"
        try:
            problem, value = ours.recv()
        except EOFError:
            process.join(5)
            raise AssertionError(f"a process died: exit code {process.exitcode}") from None
        assert problem is None, problem
        results.append(value)
    for process, _ in started:
        process.join(max(0.1, end - time.monotonic()))
    return results


# ---------------------------------------------------------------- what a progress tracker does

def load(path):
    with open(path) as f:
        return json.load(f)


def save(path, state):
    """In place, as most programs do it: the file is empty from open() on, and grows write by write."""
    with open(path, "w") as f:
        json.dump(state, f)


def padded(number, size=300):
    """A document that takes several writes to save, and that can be checked."""
    return {"n": number, "items": [number] * size, "text": f"{number:09d}" * size, "end": number}


def whole(state):
    """The number of a padded document; an assertion when it is a mixture of several."""
    number = state["n"]
    assert state == padded(number, len(state["items"])), f"a mixture around number {number}"
    return number
