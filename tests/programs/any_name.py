"""Databases under names that no rule lists: what a killed process had acknowledged is there, and several share one file."""
import os
import shelve
import sqlite3
import time

from harness import finish, is_on_mount, killed, program, result, start

PROCESSES, ROWS = 4, 12


def lines_until(process, count):
    """The first lines that a process prints."""
    return [process.stdout.readline().strip() for _ in range(count)]


def killed_after(process, count):
    """All that a process had printed when it was killed, which is at least `count` lines."""
    first = lines_until(process, count)
    assert all(first), f"it ended by itself after {first}"
    # What had been read ahead is lost: the first line of the rest may be half of one.
    return first + killed(process)[1:]


# ---------------------------------------------------------------- SQLite

def sqlite_writer(name, synchronous, worker, rows):
    """Prints each row once its transaction has committed."""
    db = sqlite3.connect(name, timeout=60, isolation_level=None)
    db.execute(f"PRAGMA synchronous = {synchronous}")
    for number in range(rows):
        db.execute("INSERT INTO t VALUES (?, ?, ?)", (worker, number, "x" * 200))
        print(number, flush=True)
    db.close()


def sqlite_select(name):
    db = sqlite3.connect(name, timeout=60)
    db.execute("SELECT count(*) FROM t").fetchone()
    db.close()


@program(opaque=["progress-*", "state-*"], unlisted=["*-wal", "*-shm", "*-journal"], limit=240)
def sqlite_of_any_name_keeps_rows_of_several_processes_and_of_killed_ones():
    for journal in ("delete", "wal"):
        for synchronous in ("off", "normal", "full"):
            name = f"{'progress' if journal == 'wal' else 'state'}-{synchronous}"
            db = sqlite3.connect(name, isolation_level=None, timeout=60)
            assert db.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0] == journal
            db.execute("CREATE TABLE t (worker, number, pad)")
            workers = [start(sqlite_writer, name, synchronous, w, ROWS) for w in range(PROCESSES)]
            victim = start(sqlite_writer, name, synchronous, 99, 100_000)
            # One SELECT by another process must not take the log from under the writers.
            finish([start(sqlite_select, name)])
            acknowledged = {(99, int(n)) for n in killed_after(victim, 5)}
            for worker, output in enumerate(finish(workers)):
                acknowledged |= {(worker, int(n)) for n in output.split()}
            rows = set(db.execute("SELECT worker, number FROM t"))
            assert not acknowledged - rows, f"{name}: gone {sorted(acknowledged - rows)}"
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok", name
            db.close()


def sqlite_half(name, synchronous):
    db = sqlite3.connect(name, isolation_level=None)
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("PRAGMA cache_size = 5")
    db.execute("BEGIN")
    db.execute("UPDATE t SET pad = 'n' || substr(pad, 1, 200) || n")
    print("spilled", flush=True)
    time.sleep(60)


@program(opaque=["cov"], unlisted=["cov-*"])
def sqlite_rolls_a_killed_transaction_back_that_had_spilled():
    db = sqlite3.connect("cov")
    db.execute("CREATE TABLE t (n, pad)")
    db.executemany("INSERT INTO t VALUES (?, ?)", ((i, "o" * 300) for i in range(1000)))
    db.execute("CREATE INDEX i ON t (pad, n)")
    db.commit()
    db.close()
    for synchronous in ("OFF", "NORMAL", "FULL"):
        killed_after(start(sqlite_half, "cov", synchronous), 1)
        db = sqlite3.connect("cov")
        assert db.execute("SELECT count(*), sum(pad LIKE 'n%') FROM t").fetchone() == (1000, 0), synchronous
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok", synchronous
        db.close()


# ---------------------------------------------------------------- dbm and shelve

def like_dbm_sqlite3(name):
    """What dbm.sqlite3, which shelve takes from Python 3.13 on, calls."""
    db = sqlite3.connect(f"file:{os.path.abspath(name)}?mode=rwc", isolation_level=None, uri=True, timeout=60)
    db.execute("PRAGMA journal_mode = wal")
    db.execute("CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
    return db


def dbm_sqlite3_writer(name, worker, rows):
    db = like_dbm_sqlite3(name)
    for number in range(rows):
        db.execute("REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (f"{worker}-{number}", b"v" * 100))
        print(number, flush=True)
    db.close()


@program(opaque=["shelf"], unlisted=["shelf-*"])
def what_shelve_of_python_3_13_stores_survives_kills_and_is_shared():
    like_dbm_sqlite3("shelf").close()
    victim = start(dbm_sqlite3_writer, "shelf", 9, 100_000)
    others = [start(dbm_sqlite3_writer, "shelf", w, ROWS) for w in range(2)]
    expected = {f"9-{n}" for n in killed_after(victim, 5)}
    for worker, output in enumerate(finish(others)):
        expected |= {f"{worker}-{n}" for n in output.split()}
    db = like_dbm_sqlite3("shelf")
    keys = {key.decode() for key, in db.execute("SELECT key FROM Dict")}
    db.close()
    assert not expected - keys, sorted(expected - keys)


def shelve_writer(module, name):
    if module == "shelve":
        db = shelve.open(name)
    else:
        db = __import__(module, fromlist=["open"]).open(name, "c")
    for number in range(100_000):
        db[f"key-{number}"] = "value" if module == "shelve" else b"value"
        if hasattr(db, "sync"):
            db.sync()
        print(number, flush=True)


@program(modules=["dbm.gnu"], unlisted=["store*"])
def what_dbm_and_shelve_have_synced_survives_a_kill():
    kept = {}
    for module in ("dbm.gnu", "shelve"):
        name = f"store-{module.replace('.', '-')}"
        numbers = killed_after(start(shelve_writer, module, name), 5)
        db = shelve.open(name, "r") if module == "shelve" else __import__(module, fromlist=["open"]).open(name, "r")
        kept[module] = all(f"key-{n}" in db for n in numbers)
        db.close()
    result(kept)
    assert all(kept.values()), kept


# ---------------------------------------------------------------- LMDB

def lmdb_writer(name, worker, rows):
    import lmdb
    db = lmdb.open(name, subdir=False, map_size=1 << 24)
    print("open", flush=True)
    for number in range(rows):
        with db.begin(write=True) as t:
            t.put(b"n", str(int(t.get(b"n") or 0) + 1).encode())
            t.put(f"{worker}-{number}".encode(), b"x" * 50)
        print(number, flush=True)
    db.close()


@program(modules=["lmdb"], opaque=["train.lmdb*", "state*"])
def lmdb_as_one_file_is_shared_from_its_making_on():
    import lmdb
    for name in ("train.lmdb", "state"):
        writers = [start(lmdb_writer, name, w, 60) for w in range(2)]
        victim = start(lmdb_writer, name, 9, 100_000)
        done = killed_after(victim, 10)[1:]
        for output in finish(writers):
            assert len(output.split()) == 61
        db = lmdb.open(name, subdir=False, map_size=1 << 24)
        with db.begin() as t:
            entries, listed = t.stat()["entries"], sum(1 for _ in t.cursor())
            assert entries == listed, (name, entries, listed)
            assert all(t.get(f"9-{n}".encode()) for n in done), name
            assert int(t.get(b"n")) == entries - 1 >= 120 + len(done), name
        db.close()


# ---------------------------------------------------------------- HDF5

def hdf5_steps(name, mode):
    import h5py
    import numpy
    with h5py.File(name, mode) as f:
        for number in range(100_000):
            f.create_dataset(f"step{len(f)}", data=numpy.full(50, number))
            f.flush()
            print(len(f), flush=True)


def hdf5_followed(name, steps):
    import h5py
    f = h5py.File(name, "w", libver="latest")
    x = f.create_dataset("x", shape=(0,), maxshape=(None,), chunks=(64,), dtype="f8")
    f.swmr_mode = True
    for i in range(steps):
        x.resize((i + 1,))
        x[i] = i
        x.flush()
    print(steps, flush=True)
    time.sleep(60)


def hdf5_points(name):
    import h5py
    with h5py.File(name, "r", swmr=True) as f:
        print(f["x"].shape[0])


@program(modules=["h5py", "numpy"], opaque=["*.h5", "results*"])
def hdf5_keeps_the_steps_of_a_killed_simulation():
    import h5py
    for name in ("results.h5", "results"):
        for mode in ("x", "a", "r+"):
            steps = int(killed_after(start(hdf5_steps, name, mode), 5)[-1])
            with h5py.File(name, "r") as f:
                assert len(f) >= steps, f"{name}, {mode}: {len(f)} of {steps}"


@program(modules=["h5py", "numpy"], opaque=["*.h5", "run"])
def hdf5_can_be_followed_while_it_is_written_and_survives_the_kill():
    for name in ("run", "followed.h5"):
        writer = start(hdf5_followed, name, 300)
        assert lines_until(writer, 1) == ["300"]
        assert finish([start(hdf5_points, name)]) == ["300\n"], name
        killed(writer)
        assert finish([start(hdf5_points, name)]) == ["300\n"], name


def hdf5_save(path):
    import h5py
    try:
        with h5py.File(path, "w") as f:
            f["w"] = list(range(20_000))
    except OSError:
        pass  # who does not get HDF5's lock has emptied the file already


@program(modules=["h5py", "numpy"], limit=180)
def weights_that_ten_processes_save_with_w_are_never_empty():
    """Keras' save_weights: each opens with O_TRUNC and then asks for the lock. (On the plain directory one round in ten or so.)"""
    import h5py
    path = "model.weights.h5"
    hdf5_save(path)
    unreadable = 0
    for round_ in range(15):
        savers = []
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                hdf5_save(path)
                os._exit(0)
            savers.append(pid)
        time.sleep(round_ / 2000)
        for pid in savers[:3]:
            os.kill(pid, 9)
        for pid in savers:
            os.waitpid(pid, 0)
        try:
            with h5py.File(path, "r") as f:
                assert list(f["w"][:3]) == [0, 1, 2]
        except OSError:
            unreadable += 1
            hdf5_save(path)
    assert not (unreadable and is_on_mount()), f"{unreadable} times of 15"
    os.unlink(path)

# ---------------------------------------------------------------- DuckDB, RocksDB

def duckdb_writer(name):
    import duckdb
    db = duckdb.connect(name)
    db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
    for number in range(100_000):
        db.execute("INSERT INTO t VALUES (?)", [number])
        if number % 20 == 19:
            db.execute("CHECKPOINT")
        print(number, flush=True)


@program(modules=["duckdb"], opaque=["facts"], unlisted=["facts.*"])
def duckdb_of_any_name_keeps_rows_of_a_killed_process():
    import duckdb
    numbers = {int(n) for n in killed_after(start(duckdb_writer, "facts"), 30)}
    db = duckdb.connect("facts")
    rows = {n for n, in db.execute("SELECT n FROM t").fetchall()}
    db.close()
    assert not numbers - rows, sorted(numbers - rows)


def rocksdb_writer(name):
    import rocksdict
    db = rocksdict.Rdict(name)
    for number in range(100_000):
        db[f"key-{number}"] = b"v" * 300
        if number % 50 == 49:
            db.flush()
        print(number, flush=True)


@program(modules=["rocksdict"], unlisted=["store/*"])
def rocksdb_keeps_keys_of_a_killed_process():
    import rocksdict
    first = set()
    for _ in range(3):
        first |= set(killed_after(start(rocksdb_writer, "store"), 120))
        db = rocksdict.Rdict("store")
        gone = [n for n in first if db.get(f"key-{n}") is None]
        db.close()
        assert not gone, gone
