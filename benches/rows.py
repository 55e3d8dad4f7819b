"""What scripts/bench measures: the rows of its table."""
import dataclasses
import os
import subprocess
import sys
import tempfile

MIB = 1 << 20


@dataclasses.dataclass
class Row:
    """One line of the table. `plain` is what the plain directory does where that isn't the same: what a careful program does by hand."""

    name: str
    operation: str
    plain: str = ""
    # How often in one block, and how many threads at once, each with a file of its own.
    count: int = 100
    threads: int = 1
    # What is there before: a name that is appended to the row's own path, and the content.
    content: bytes = b"x" * 2048
    # A process of its own for each time.
    once: bool = False
    # Somebody has the file open for writing meanwhile.
    beside: bool = False
    # So many bytes go through in one operation: told as a speed.
    amount: int = 0
    # Only as a program of its own: a function of the directory that is timed from outside, and what prepares it.
    program: object = None
    prepare: object = None
    # Not for bindfs, which knows no patches.
    bindfs: bool = True
    # How many times requests and system calls are counted, if they are.
    counted: int = 20

    def operation_of(self, side):
        return self.plain if self.plain and side != "commitfs" else self.operation


DOCUMENT = b'{"n": 1}\n'


def run(*command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def numpy_save(directory, state):
    import numpy

    numpy.save(f"{directory}/array.npy", state["array"])


def zip_save(directory, state):
    """As torch.save does: a stored zip of one member for each tensor."""
    import zipfile

    with zipfile.ZipFile(f"{directory}/model.pt", "w", zipfile.ZIP_STORED) as archive:
        data = memoryview(state["array"]).cast("B")
        step = len(data) // 8
        for n in range(8):
            archive.writestr(f"model/data/{n}", data[n * step : (n + 1) * step])


def safetensors_save(directory, state):
    from safetensors.numpy import save_file

    save_file({"weight": state["array"]}, f"{directory}/model.safetensors")


def tree_source(state):
    """A tree of 2,000 small files in 40 directories, and an archive of it, outside of what is measured."""
    if "tree" not in state:
        top = tempfile.mkdtemp(dir=state["scratch"])
        for directory in range(40):
            os.makedirs(f"{top}/tree/{directory}")
            for name in range(50):
                with open(f"{top}/tree/{directory}/{name}.txt", "w") as f:
                    f.write(f"{name}\n" * 200)
        run("tar", "cf", f"{top}/tree.tar", "-C", top, "tree")
        state["tree"] = top
    return state["tree"]


def unpack(directory, state):
    run("tar", "xf", f"{state['tree']}/tree.tar", "-C", directory)


def copy(directory, state):
    run("cp", "-a", f"{state['tree']}/tree", directory)


def remove(directory, state):
    run("rm", "-rf", f"{directory}/tree")


def git(directory, state):
    repository = f"{directory}/repository"
    run("git", "init", "-q", repository)
    for n in range(300):
        with open(f"{repository}/{n}.py", "w") as f:
            f.write(f"number = {n}\n" * 40)
    run("git", "-C", repository, "add", ".")
    run("git", "-C", repository, "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q", "-m", "all")


def walk(directory, state):
    for _ in os.walk(f"{directory}/deep"):
        pass


def make_deep(directory, state):
    for n in range(state["directories"]):
        os.makedirs(f"{directory}/deep/{n // 60}/{n % 60}", exist_ok=True)


def burst(directory, state):
    os.makedirs(f"{directory}/burst")
    for n in range(state["burst"]):
        with open(f"{directory}/burst/{n}", "w") as f:
            f.write("x")


WORKER = """
import json, os, sys, time
directory, rank, iterations = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.makedirs(f"{directory}/rank-{rank}", exist_ok=True)
for iteration in range(iterations):
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    with open(f"{directory}/rank-{rank}/weights.bin", "wb") as f:
        for _ in range(64):
            f.write(bytes(4096))
    with open(f"{directory}/rank-{rank}/metrics.json", "w") as f:
        json.dump({"iteration": iteration, "loss": [1 / (n + 1) for n in range(300)]}, f)
    with open(f"{directory}/metadata.json", "w") as f:
        json.dump({"rank": rank, "iteration": iteration}, f)
"""


def training(directory, state):
    """Ten workers that compute for 50 ms, then save weights, metrics and a document that they share."""
    os.makedirs(f"{directory}/job")
    line = [sys.executable, "-c", WORKER, f"{directory}/job"]
    workers = [subprocess.Popen([*line, str(rank), str(state["iterations"])]) for rank in range(10)]
    if any([worker.wait() for worker in workers]):
        raise RuntimeError("a worker of the job failed")


def rows(quick):
    """All rows; with `quick` those that fit into a minute, with less in each."""
    large = (64 if quick else 1024) * MIB
    array = (32 if quick else 200) * MIB
    blocks = [
        Row("save 2 KiB, habitual process", "save"),
        Row("save 2 KiB, first-time process", "save", once=True, count=20),
        Row("new file", "create", content=b""),
        Row("temporary file and rename", "replace"),
        Row("fsync'd save, against by hand", "save-synced", plain="by-hand", count=20),
        Row("the same, 16 writers", "save-synced", plain="by-hand", count=5, threads=16),
        Row("open, read, close", "read", count=300),
        Row("the same beside a writer", "read", count=300, beside=True),
        Row("stat", "stat", count=2000),
        Row("the same beside a writer", "stat", count=1000, beside=True),
        Row("append a line, kept open", "append-kept", count=1000),
        Row("append a line, opened each time", "append", count=200),
        Row("patch by descriptor, against by hand", "patch-kept", plain="count-up", content=DOCUMENT, bindfs=False),
        Row("patch by path, against by hand", "patch", plain="count-up", content=DOCUMENT, bindfs=False),
        Row("O_EXCL lock and unlink", "claim", content=b""),
        Row("backup rotation", "rotate", count=50),
        Row(f"write {large // MIB} MiB in 1 MiB blocks", f"write-{large}:{MIB}", count=1, amount=large, counted=0),
        Row(f"write {large // MIB} MiB in 4 KiB blocks", f"write-{large}:4096", count=1, amount=large, counted=0),
        Row("read it, cold", f"cold:{MIB}", count=1, amount=large, counted=0),
        Row("read it, warm", f"warm:{MIB}", count=1, amount=large, counted=0),
        Row("read it, mapped", "mapped", count=1, amount=large, counted=0),
        Row("stat 2,000 files", "stat-each", count=2000, counted=0),
        Row("read 2,000 files", "read-each", count=2000, counted=0),
    ]
    programs = [
        Row(f"np.save of {array // MIB} MB", "", program=numpy_save, amount=array),
        Row(f"zip of {array // MIB} MB, as torch.save", "", program=zip_save, amount=array),
        Row(f"safetensors of {array // MIB} MB", "", program=safetensors_save, amount=array),
        Row("tar x of 2,000 files", "", program=unpack, prepare=lambda d, s: tree_source(s)),
        Row("cp -a of 2,000 files", "", program=copy, prepare=lambda d, s: tree_source(s)),
        Row("rm -rf of 2,000 files", "", program=remove, prepare=lambda d, s: (tree_source(s), copy(d, s))),
        Row("git init, add, commit of 300 files", "", program=git),
        Row("os.walk of directories", "", program=walk, prepare=make_deep),
        Row("a burst of new files", "", program=burst),
        Row("training job of ten workers", "", program=training),
    ]
    return blocks + programs


def state_of(root, scratch, quick):
    """What the programs need: an array, how much of each."""
    import numpy

    words = (32 if quick else 200) * MIB // 8
    return {
        "root": root,
        "scratch": scratch,
        "array": numpy.arange(words, dtype=numpy.int64),
        "directories": 300 if quick else 3000,
        "burst": 2000 if quick else 20000,
        "iterations": 5 if quick else 40,
    }
