"""What Python programs write: documents, arrays, archives, logs; alone, from pools, and under lock files."""
import concurrent.futures
import contextlib
import errno
import json
import logging
import logging.handlers
import os
import pickle
import random
import shelve
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

from harness import finish, overwritten_updates, program, read, result, start, write


# ---------------------------------------------------------------- documents

@program()
def json_dump_rewrites_a_document():
    state = {"step": 0, "loss": [], "name": "ä", "nested": {"a": [1, 2.5, None, True]}}
    for step in range(100):
        state["step"], state["loss"] = step, state["loss"] + [1 / (step + 1)]
        with open("state.json", "w") as f:
            json.dump(state, f, indent=2)
        with open("state.json") as f:
            assert json.load(f) == state
    with open("state.json", "r+") as f:  # load, change and save through one description
        state = json.load(f)
        state["edited"] = True
        f.seek(0)
        json.dump(state, f)
        f.truncate()
    with open("lines.jsonl", "a") as f:
        for step in range(50):
            f.write(json.dumps({"step": step}) + "\n")
    assert [json.loads(line)["step"] for line in open("lines.jsonl")] == list(range(50))


@program()
def pickle_dump_and_load_agree():
    value = {"weights": [float(i) for i in range(20_000)], "text": "ä" * 1000, "nested": [(i, str(i)) for i in range(500)]}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with open(f"p{protocol}.pkl", "wb") as f:
            pickle.dump(value, f, protocol)
        with open(f"p{protocol}.pkl", "rb") as f:
            assert pickle.load(f) == value
    with open("many.pkl", "wb") as f:
        for i in range(10):
            pickle.dump(i, f)
    with open("many.pkl", "ab") as f:
        pickle.dump("last", f)
    with open("many.pkl", "rb") as f:
        assert [pickle.load(f) for _ in range(11)][-1] == "last"


# Which database module stands behind it, and so the file names, depends on the Python build.
@program(unlisted=["shelf*"])
def shelve_keeps_entries_over_reopenings():
    for round_number in range(10):
        with shelve.open("shelf", writeback=round_number % 2 == 0) as shelf:
            for i in range(round_number * 10, round_number * 10 + 10):
                shelf[f"key-{i}"] = {"i": i, "data": "x" * i}
            if round_number:
                del shelf[f"key-{round_number * 10 - 1}"]
    with shelve.open("shelf", flag="r") as shelf:
        result({key: shelf[key] for key in sorted(shelf)})
        assert len(shelf) == 91


@program()
def text_and_byte_files_in_every_mode():
    write("w", "one\ntwo\n")
    with open("w", "a") as f:
        f.write("three\n")
    with open("w", "r+") as f:
        f.seek(4)
        f.write("TWO")
    with open("w+", "w+") as f:
        f.write("abc")
        f.seek(0)
        assert f.read() == "abc"
    with open("a+", "a+") as f:
        f.write("abc")
        f.seek(0)
        assert f.read() == "abc"
    with open("x", "x") as f:
        f.write("exclusive")
    try:
        open("x", "x")
        raise AssertionError("a second exclusive creation succeeded")
    except FileExistsError:
        pass
    with open("unbuffered", "wb", buffering=0) as f:
        for i in range(100):
            f.write(b"%d," % i)
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(fd, b"end", 100_000)
    os.ftruncate(fd, 100_010)
    os.close(fd)
    with open("w", "rb") as f:
        copy = os.dup(f.fileno())
    os.lseek(copy, 0, os.SEEK_SET)
    assert os.read(copy, 3) == b"one"
    os.close(copy)
    for i in range(200):
        write("again", f"{i}")
        assert read("again") == f"{i}"


# ---------------------------------------------------------------- temporary names

@program()
def named_temporary_file_replaced_while_open():
    """The usual recipe, with its usual mistake: the rename comes before the close."""
    for i in range(30):
        with tempfile.NamedTemporaryFile("w", dir=".", delete=False) as f:
            json.dump({"i": i, "pad": "x" * 5000}, f)
            f.flush()
            os.replace(f.name, "inside.json")
            assert json.load(open("inside.json"))["i"] == i
        with tempfile.NamedTemporaryFile("w", dir=".", delete=False, prefix="tmp-", suffix=".json") as f:
            json.dump({"i": i}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(f.name, "after.json")
        assert json.load(open("after.json"))["i"] == i
    os.chmod("inside.json", 0o644)
    fd, name = tempfile.mkstemp(dir=".")
    with os.fdopen(fd, "wb") as f:
        f.write(b"from mkstemp")
    os.link(name, "linked")
    os.unlink(name)
    with tempfile.TemporaryFile(dir=".") as f:
        f.write(b"never named")
        f.seek(0)
        assert f.read() == b"never named"
    with tempfile.TemporaryDirectory(dir=".") as folder:
        write(os.path.join(folder, "f"), "gone")
    with tempfile.NamedTemporaryFile(dir=".") as f:  # deleted while open
        f.write(b"gone")
    assert sorted(os.listdir()) == ["after.json", "inside.json", "linked"], os.listdir()


# ---------------------------------------------------------------- arrays and weights

@program(modules=["numpy"])
def numpy_saves_and_maps_arrays():
    import numpy as np
    array = np.arange(50_000, dtype=np.float64).reshape(100, 500)
    np.save("a.npy", array)
    np.savez("b.npz", x=array, y=array[:5])
    np.savez_compressed("c.npz", x=array)
    np.savetxt("d.txt", array[:3, :4])
    array.tofile("e.raw")
    assert (np.load("a.npy") == array).all() and (np.load("b.npz")["y"] == array[:5]).all() and (np.load("c.npz")["x"] == array).all()
    mapped = np.load("a.npy", mmap_mode="r")
    np.save("a.npy", array + 1)  # in place of the file that is mapped
    assert (np.load("a.npy") == array + 1).all()
    del mapped
    with open("two.npy", "wb") as f:
        np.save(f, array[0])
        np.save(f, array[1])
    with open("two.npy", "rb") as f:
        assert (np.load(f) == array[0]).all() and (np.load(f) == array[1]).all()
    made = np.lib.format.open_memmap("m.npy", mode="w+", dtype=np.int32, shape=(1000,))
    made[:] = np.arange(1000)
    made.flush()
    del made
    edited = np.memmap("e.raw", dtype=np.float64, mode="r+")
    edited[:10] = -1
    edited.flush()
    del edited
    assert (np.fromfile("e.raw")[:10] == -1).all() and np.load("m.npy")[999] == 999


FILL = """
import sys
import numpy as np
rows = np.load("rows.npy", mmap_mode="r+")
me, of = int(sys.argv[1]), int(sys.argv[2])
print("mapped", flush=True)
sys.stdin.readline()
for row in range(me, len(rows), of):
    rows[row] = row + 1
rows.flush()
"""


@program(modules=["numpy"])
def numpy_workers_fill_their_own_rows_of_one_array():
    import numpy as np
    made = np.lib.format.open_memmap("rows.npy", mode="w+", dtype="f4", shape=(1000, 8))
    del made
    workers = [subprocess.Popen([sys.executable, "-c", FILL, str(me), "4"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for me in range(4)]
    for worker in workers:
        assert worker.stdout.readline() == "mapped\n"
    for worker in workers:
        worker.communicate("go\n", timeout=60)
        assert worker.returncode == 0
    assert (np.load("rows.npy")[:, 0] == np.arange(1, 1001)).all()


@program(modules=["h5py", "numpy"])
def h5py_creates_and_edits_files():
    import h5py
    import numpy as np
    with h5py.File("data.h5", "w") as f:
        f.create_dataset("x", data=np.arange(10_000))
        f.create_dataset("log", shape=(0,), maxshape=(None,), chunks=(100,), dtype="f8")
        f.attrs["made"] = "here"
    for i in range(10):
        with h5py.File("data.h5", "a") as f:
            f["log"].resize((i + 1,))
            f["log"][i] = i
            f["x"][i] = -i
    with h5py.File("data.h5", "r+") as f:
        f.create_group("g/h").create_dataset("z", data=np.ones((10, 10)), compression="gzip")
        f.flush()
        del f["g/h/z"]
    with h5py.File("data.h5", "r") as f:
        assert list(f["log"]) == list(range(10)) and f["x"][9] == -9
        result({"log": list(f["log"][:]), "x": int(f["x"][:].sum()), "names": sorted(f)})


@program(modules=["safetensors", "numpy"])
def safetensors_rewrites_its_file():
    import numpy as np
    from safetensors import safe_open
    from safetensors.numpy import load_file, save, save_file
    for i in range(10):
        tensors = {"w": np.full((100, 100), i, np.float32), "b": np.arange(i + 1, dtype=np.int64)}
        save_file(tensors, "model.safetensors", metadata={"step": str(i)})
        assert (load_file("model.safetensors")["w"] == i).all()
    write("bytes.safetensors", save(tensors))
    with safe_open("model.safetensors", "np") as f:
        assert f.metadata() == {"step": "9"} and f.get_tensor("b")[9] == 9


@program()
def zip_written_as_torch_save_writes_it():
    """Stored members, the data aligned by padding in the extra field, the name of the file as the top folder."""
    def save(target, top, step):
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            members = {"data.pkl": pickle.dumps({"step": step}), "byteorder": b"little", ".format_version": b"1",
                       "version": b"3\n", **{f"data/{i}": bytes([i + step]) * 4096 * (i + 1) for i in range(8)}}
            for name, data in members.items():
                info = zipfile.ZipInfo(f"{top}/{name}", (1980, 1, 1, 0, 0, 0))
                pad = -(archive.fp.tell() + 30 + len(info.filename) + 4) % 64
                info.extra = struct.pack("<2sH", b"FB", pad) + b"Z" * pad
                archive.writestr(info, data)
    for step in range(10):
        save("model.pt", "model", step)
        with open("latest.ckpt", "wb") as f:
            save(f, "latest", step)
        for name in ("model", "latest"):
            with zipfile.ZipFile({"model": "model.pt", "latest": "latest.ckpt"}[name]) as archive:
                assert archive.testzip() is None and pickle.loads(archive.read(f"{name}/data.pkl"))["step"] == step
    with zipfile.ZipFile("model.pt", "a") as archive:
        archive.writestr(zipfile.ZipInfo("model/added"), b"x" * 1000)
    assert len(zipfile.ZipFile("model.pt").namelist()) == 13


# ---------------------------------------------------------------- pools and logs

def pool_task(i):
    with open(f"out-{i}.json", "w") as f:
        json.dump({"i": i, "square": i * i}, f)
    fd = os.open("done.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, b"%d\n" % i)
    os.close(fd)
    return i


@program(opaque=["done.log"])
def process_pool_workers_write_what_their_parent_reads():
    with open("held.txt", "w") as held:  # the workers inherit it and are gone before it is closed
        held.write("begin\n")
        held.flush()
        with concurrent.futures.ProcessPoolExecutor(4) as pool:
            for future in concurrent.futures.as_completed([pool.submit(pool_task, i) for i in range(60)]):
                i = future.result()
                assert json.loads(read(f"out-{i}.json"))["square"] == i * i
        held.write("end\n")
    assert sorted(int(line) for line in read("done.log").split()) == list(range(60))
    assert read("held.txt") == "begin\nend\n"


def append_lines(path, who, count):
    with open(path, "a") as f:
        for i in range(count):
            f.write(json.dumps({"who": who, "i": i, "pad": "x" * (i % 50)}) + "\n")
            f.flush()


def log_lines(path, who, count):
    logger = logging.getLogger(str(who))
    logger.addHandler(logging.FileHandler(path))
    for i in range(count):
        logger.warning("%d %d", who, i)


@program(opaque=["shared.*"])
def several_processes_append_to_one_log():
    finish([start(log_lines, "shared.log", who, 300) for who in range(5)])
    lines = sorted(tuple(map(int, line.split())) for line in read("shared.log").splitlines())
    assert lines == [(who, i) for who in range(5) for i in range(300)]


@program(opaque=["shared.*"])
def several_processes_append_records_to_one_file():
    finish([start(append_lines, "shared.jsonl", who, 200) for who in range(5)])
    lines = sorted((r["who"], r["i"]) for r in map(json.loads, read("shared.jsonl").splitlines()))
    assert lines == [(who, i) for who in range(5) for i in range(200)]


def rotating(who):
    """Several threads, one rotating handler; every record once, in one of the files."""
    logger = logging.getLogger(f"rotating-{who}")
    logger.setLevel(logging.INFO)
    handler = logging.handlers.RotatingFileHandler(f"app-{who}.log", maxBytes=2000, backupCount=200)
    logger.addHandler(handler)
    threads = [threading.Thread(target=lambda t=t: [logger.info("thread %d record %d", t, i) for i in range(100)]) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    handler.close()


@program(opaque=["app-*.log*"], unlisted=["app-*.log*"])
def rotating_logs_keep_every_record():
    finish([start(rotating, who) for who in range(3)])
    for who in range(3):
        parts = [name for name in os.listdir() if name.startswith(f"app-{who}.log")]
        records = sorted(line for name in parts for line in read(name).splitlines())
        assert records == sorted(f"thread {t} record {i}" for t in range(4) for i in range(100)), len(records)
        assert len(parts) > 3 and all(os.path.getsize(name) <= 2000 for name in parts)


# ---------------------------------------------------------------- event files

def events(path):
    """The records of an event file that are complete: length, masked CRC, data, masked CRC."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c
    found, data = [], read(path, "rb")
    while len(data) >= 12:
        size, crc = struct.unpack("<QI", data[:12])
        assert crc == masked_crc32c(data[:8]), "the checksum of a record's length"
        if len(data) < 16 + size:
            break
        assert struct.unpack("<I", data[12 + size:16 + size])[0] == masked_crc32c(data[12:12 + size]), "a record's checksum"
        found.append(Event.FromString(data[12:12 + size]))
        data = data[16 + size:]
    return found


def scalars(path):
    return [(v.tag, e.step, v.simple_value) for e in events(path) for v in e.summary.value]


@program(modules=["tensorboardX"], unlisted=["runs/*/events*"])
def tensorboard_events_are_seen_while_the_writer_is_open():
    from tensorboardX import SummaryWriter
    from tensorboardX.event_file_writer import EventFileWriter
    writer = SummaryWriter("runs/a", flush_secs=1)
    for step in range(100):
        writer.add_scalar("loss", 1 / (step + 1), step)
    writer.flush()
    (name,) = os.listdir("runs/a")
    end = time.monotonic() + 30  # the writer's thread flushes every second
    while len(scalars(f"runs/a/{name}")) < 100:
        assert time.monotonic() < end, "flushed events are not seen by a reader"
        time.sleep(0.05)
    for step in range(100, 150):
        writer.add_scalar("loss", 0.5, step)
    writer.close()
    found = scalars(f"runs/a/{name}")
    assert [step for _, step, _ in found] == list(range(150))
    plain = EventFileWriter("runs/b")
    plain.close()
    (other,) = os.listdir("runs/b")
    assert events(f"runs/b/{other}")[0].file_version.startswith("brain.Event")
    result([[tag, step, round(value, 6)] for tag, step, value in found])


# ---------------------------------------------------------------- lock files

def add_under_lock(kind, count):
    lock = locks(kind)
    for _ in range(count):
        with lock():
            n = int(read(f"{kind}.count"))
            write(f"{kind}.count", str(n + 1))


def locks(kind):
    """What makes a context in which nobody else is: every class of lock that the three modules have for files."""
    library, name = kind.split("-")
    if library == "filelock":
        import filelock
        lock = getattr(filelock, name)(f"{kind}.lock", timeout=60)
        return (lambda: awaited(lock)) if name.startswith("Async") else lambda: lock.acquire(poll_interval=0.005)
    if library == "portalocker":
        import portalocker
        if name == "BoundedSemaphore":
            lock = portalocker.BoundedSemaphore(1, name=kind, directory=".", timeout=60, check_interval=0.005)
        else:
            lock = getattr(portalocker, name)(f"{kind}.lock", timeout=60, check_interval=0.005)
        return (lambda: twice(lock)) if name == "RLock" else lambda: lock
    import fasteners
    lock = getattr(fasteners, name)(f"{kind}.lock")
    return lock.write_lock if name == "InterProcessReaderWriterLock" else lambda: lock


@contextlib.contextmanager
def awaited(lock):
    import asyncio
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(lock.acquire(poll_interval=0.005))
        try:
            yield
        finally:
            loop.run_until_complete(lock.release())
    finally:
        loop.close()


@contextlib.contextmanager
def twice(lock):
    with lock, lock:
        yield


def counted(*kinds):
    for kind in kinds:
        write(f"{kind}.count", "0")
        finish([start(add_under_lock, kind, 20) for _ in range(5)])
        assert read(f"{kind}.count") == "100", kind


@program(modules=["filelock"])
def filelock_serialises_processes():
    counted("filelock-FileLock", "filelock-UnixFileLock", "filelock-AsyncFileLock")
    import filelock
    with filelock.FileLock("held.lock"):
        try:
            filelock.FileLock("held.lock", is_singleton=False).acquire(timeout=0.1)
            raise AssertionError("locked twice")
        except filelock.Timeout:
            pass


@program(modules=["filelock"])
def soft_filelock_serialises_processes():
    counted("filelock-SoftFileLock", "filelock-AsyncSoftFileLock")


@program(modules=["portalocker"])
def portalocker_serialises_processes():
    counted("portalocker-Lock", "portalocker-RLock", "portalocker-BoundedSemaphore")


def modify_locked(count):
    import portalocker
    for _ in range(count):
        with portalocker.Lock("document", "r+", timeout=60, check_interval=0.005) as f:
            n = int(f.read())
            f.seek(0)
            f.write(str(n + 1))
            f.flush()  # portalocker unlocks before it closes


@program(modules=["portalocker"])
def portalocker_locks_the_document_itself():
    write("document", "1000")
    finish([start(modify_locked, 20) for _ in range(5)])
    assert read("document") == "1100"
    import portalocker
    with open("document", "r+") as f, open("document", "r+") as other:
        portalocker.lock(f, portalocker.LOCK_EX)
        try:
            portalocker.lock(other, portalocker.LOCK_SH | portalocker.LOCK_NB)
            raise AssertionError("locked twice")
        except portalocker.LockException:
            pass
        portalocker.unlock(f)
        portalocker.lock(other, portalocker.LOCK_SH | portalocker.LOCK_NB)
        portalocker.lock(f, portalocker.LOCK_SH | portalocker.LOCK_NB)
    with portalocker.open_atomic("whole") as f:
        f.write(b"at once")


@program(modules=["portalocker"])
def portalocker_removes_temporary_lock_files():
    import portalocker
    with portalocker.TemporaryFileLock("t.lock"):
        assert os.listdir() == ["t.lock"]
        try:
            portalocker.TemporaryFileLock("t.lock", timeout=0.1, check_interval=0.01).acquire()
            raise AssertionError("locked twice")
        except portalocker.AlreadyLocked:
            pass
    assert os.listdir() == []
    with portalocker.TemporaryFileLock("t.lock"):
        pass
    # Of a semaphore for two, a third one gets nothing.
    two = [portalocker.BoundedSemaphore(2, name="two", directory=".", timeout=0.1, check_interval=0.01) for _ in range(3)]
    assert two[0].acquire() and two[1].acquire()
    try:
        two[2].acquire()
        raise AssertionError("a semaphore for two let a third one in")
    except portalocker.AlreadyLocked:
        pass
    two[0].release()
    assert two[2].acquire()


@program(modules=["fasteners"])
def fasteners_serialises_processes():
    counted("fasteners-InterProcessLock", "fasteners-InterProcessReaderWriterLock")


def write_pairs(count):
    import fasteners
    lock = fasteners.InterProcessReaderWriterLock("pair.lock")
    for _ in range(count):
        with lock.write_lock(delay=0.001, max_delay=0.005):
            n = int(read("left"))
            write("left", str(n + 1))
            write("right", str(n + 1))


def read_pairs(count):
    import fasteners
    lock = fasteners.InterProcessReaderWriterLock("pair.lock")
    for _ in range(count):
        with lock.read_lock(delay=0.001, max_delay=0.005):
            left, right = read("left"), read("right")
            assert left == right, f"{left} and {right} under a read lock"


@program(modules=["fasteners"])
def fasteners_keeps_readers_and_writers_apart():
    write("left", "0")
    write("right", "0")
    finish([start(write_pairs, 20) for _ in range(3)] + [start(read_pairs, 40) for _ in range(3)])
    assert read("left") == read("right") == "60"


# ---------------------------------------------------------------- locks themselves

FLOCK = "hhqqi"  # struct flock: type, whence, start, length, pid
F_OFD_GETLK, F_OFD_SETLK = 36, 37


def lock_servant():
    """Does one operation on a lock per line, never waiting, and says what the system said."""
    import fcntl
    held = {}
    for line in sys.stdin:
        what, name, *words = json.loads(line)
        try:
            if what == "open":
                held[name] = os.open(name, *words)
                answer = "opened"
            elif what == "close":
                answer = os.close(held.pop(name))
            elif what == "flock":
                answer = fcntl.flock(held[name], words[0] | fcntl.LOCK_NB)
            else:
                command, kind, start, length = words
                told = fcntl.fcntl(held[name], command, struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0))
                kind = struct.unpack(FLOCK, told[:struct.calcsize(FLOCK)])[0]
                # Which of several locks is in the way, and whose it is, is nobody's promise.
                answer = "free" if kind == fcntl.F_UNLCK else "held"
        except OSError as e:
            answer = errno.errorcode[e.errno]
        print(json.dumps(answer), flush=True)


@program()
def operations_on_locks_answer_the_same():
    """flock, fcntl and open file description locks, shared and exclusive, on ranges and whole files, by four processes; the
    answers are in result.json. The files are empty: who opens another one's document r+ may have to wait. No file is locked
    in both ways: the mount can't always tell them apart."""
    import fcntl
    here = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {here!r}); import python_files; python_files.lock_servant()"
    servants = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
                for _ in range(4)]
    rng, answers, names = random.Random(3), [], ["f", "g"]
    opened = [{} for _ in servants]
    for name in names:
        write(name, "")
    try:
        for _ in range(1500):
            who, name = rng.randrange(len(servants)), rng.choice(names)
            kind = rng.choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
            if name not in opened[who]:
                operation = ["open", name, rng.choice([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_APPEND])]
                opened[who][name] = True
            elif rng.random() < 0.1:
                operation = ["close", name]
                del opened[who][name]
            elif name == "f" and opened[who][name] == "locked":
                # Nor is a lock converted without waiting: when that fails it is gone on the plain directory.
                operation, opened[who][name] = ["flock", name, fcntl.LOCK_UN], True
            elif name == "f":
                operation = ["flock", name, rng.choice([fcntl.LOCK_SH, fcntl.LOCK_EX])]
            else:
                asks = rng.random() < 0.25
                own = rng.random() < 0.4
                command = (F_OFD_GETLK if asks else F_OFD_SETLK) if own else (fcntl.F_GETLK if asks else fcntl.F_SETLK)
                kind = fcntl.F_WRLCK if asks else kind
                # An open file description's lock on the whole file may be taken for flock's.
                operation = ["fcntl", name, command, kind, rng.choice([3, 7] if own else [0, 0, 3, 7]), rng.choice([0, 1, 4])]
            print(json.dumps(operation), file=servants[who].stdin, flush=True)
            answers.append([who, operation, json.loads(servants[who].stdout.readline())])
            if operation[0] == "flock" and operation[2] != fcntl.LOCK_UN and answers[-1][2] is None:
                opened[who][name] = "locked"
    finally:
        for servant in servants:
            servant.kill()
            servant.communicate()
    result(answers)


# ---------------------------------------------------------------- arrays in pieces

# zarr reads and writes each file in whichever thread of its pool is free: one loads a document that another one saves.
@program(modules=["zarr", "numpy"])
def zarr_with_threads_overwrites_nobodys_update():
    import numpy
    import zarr
    for zarr_format in (2, 3):
        store = zarr.open_group(f"v{zarr_format}.zarr", mode="w", zarr_format=zarr_format)

        def fill(number):
            array = store.create_array(f"a{number}", shape=(40, 40), chunks=(10, 10), dtype="i4")
            for step in range(5):
                array[step * 8:(step + 1) * 8] = numpy.arange(320).reshape(8, 40) + number
                array.attrs["step"] = step
                array.attrs[f"seen-{step}"] = [number, step]
            array.resize((60, 40))
            array.append(numpy.full((5, 40), number, "i4"))

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(fill, range(4)))
        for step in range(10):
            # Load, change and save, again and again, each in another thread.
            store.attrs["count"] = store.attrs.get("count", 0) + 1
        again = zarr.open_group(f"v{zarr_format}.zarr", mode="r")
        assert again.attrs["count"] == 10, dict(again.attrs)
        for number in range(4):
            array = again[f"a{number}"]
            assert array.shape == (65, 40) and len(array.attrs) == 6, (array.shape, dict(array.attrs))
            assert (array[:40] == numpy.tile(numpy.arange(320).reshape(8, 40), (5, 1)) + number).all()
            assert (array[60:] == number).all()
    assert overwritten_updates() == {}, overwritten_updates()
