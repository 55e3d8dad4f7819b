"""What one program sees of another's file while it is written, step by step: the old version until the last reference is closed,
then the new one; nothing of writers that were killed or that failed. (C1, C2, C3, C4, C6, C21)

A plain directory fails at the first step.
"""
import json
import os
import signal
import subprocess
import time

from _scenario import fork, in_one_line, load, main, save


class Observer:
    """Reads on behalf of the writer, in the writer's parent: the writer itself and its descendants may see what is not committed."""

    def __init__(self, ask, answer):
        self.asked, self.answer = ask, answer

    def read(self, path):
        self.asked.send(path)
        assert self.answer.poll(20), f"no answer about {path}: an open for reading hangs"
        return self.answer.recv()


def observe(ask, answer, writer):
    while writer.is_alive():
        if ask.poll(0.05):
            path = ask.recv()
            names = os.listdir()
            try:
                with open(path) as f:
                    content = f.read()
                assert path in names, f"{path} can be opened and is not listed"
            except FileNotFoundError:
                content = "(no file)"
                assert path not in names, f"{path} is listed and cannot be opened"
            answer.send(content)


def scenario():
    (ask, asked), (answered, answer) = fork.Pipe(duplex=False), fork.Pipe(duplex=False)
    verdict, told = fork.Pipe(duplex=False)
    writer = fork.Process(target=report, args=(told, Observer(asked, answered)))
    writer.start()
    observe(ask, answer, writer)
    assert verdict.poll(1), f"the writer ended with {writer.exitcode}"
    problem = verdict.recv()
    assert not problem, problem
    return "every boundary as promised"


def report(told, world):
    try:
        steps(world)
        told.send("")
    except BaseException as e:
        told.send(in_one_line(e))


def steps(world):
    def expect(path, content, when):
        found = world.read(path)
        assert found == content, f"{when}: {path} reads {found[:60]!r}, not {content[:60]!r}"

    def put(path, text):
        with open(path, "w") as f:
            f.write(text)

    put("a", "old")
    with open("a", "w") as f:
        expect("a", "old", "after open for writing")
        f.write("ne")
        f.flush()
        expect("a", "old", "after half of the write")
        before = os.open("b", os.O_CREAT | os.O_WRONLY, 0o644)
        f.write("w")
        f.flush()
        expect("a", "old", "after the whole write")
    expect("a", "new", "after close")
    expect("b", "(no file)", "while a new file is still open")
    os.write(before, b"second file")
    expect("b", "(no file)", "a commit of one file is not one of another")
    os.close(before)
    expect("b", "second file", "after the new file's close")

    reader = open("a")
    put("a", "newer version")
    assert reader.read() == "new", "a reader's version changed under it"
    reader.close()
    expect("a", "newer version", "after the reader closed")

    fd = os.open("a", os.O_WRONLY | os.O_TRUNC)
    copy = os.dup(fd)
    os.write(fd, b"by two descriptors")
    os.close(fd)
    expect("a", "newer version", "after the first of two closes")
    os.close(copy)
    expect("a", "by two descriptors", "after the second of two closes")

    with open("a", "w") as f:
        child = subprocess.Popen(["sh", "-c", "echo from the child; read -r line; echo $line"], stdin=subprocess.PIPE, stdout=f, text=True)
    expect("a", "by two descriptors", "the parent has closed, the child has not")
    child.communicate("end", timeout=20)
    expect("a", "from the child\nend\n", "after the child's end")

    child = subprocess.Popen(["sh", "-c", "{ echo begun; read -r line; echo $line; } > a"], stdin=subprocess.PIPE, text=True)
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    child.stdin.close()
    expect("a", "from the child\nend\n", "after a writer was killed")

    child = subprocess.Popen(["sh", "-c", "echo left by a failure > a; exit 3"])
    assert child.wait(20) == 3
    expect("a", "left by a failure\n", "after a normal exit with status 3")

    save("state.json", {"step": 1})
    try:
        with open("state.json", "w") as f:
            json.dump({"step": 2, "more": list(range(5000)), "bad": object()}, f)
        raise AssertionError("json.dump of an object() succeeded")
    except (TypeError, OSError):
        pass
    assert load("state.json") == {"step": 1}, "half a document replaced a whole one"

    with open("gone", "w") as f:
        f.write("discarded")
        os.unlink("gone")
    expect("gone", "(no file)", "a name unlinked while its file was open")
    assert sorted(os.listdir()) == ["a", "b", "state.json"], os.listdir()


if __name__ == "__main__":
    main(scenario)
