"""Databases that are shared while open, with writers that are killed: what they acknowledged is there afterwards."""
import json
import os
import random
import sqlite3
import time

from harness import finish, killed, program, result, sh, start

WORKERS, INCREMENTS, KILLS = 10, 20, 12


# ---------------------------------------------------------------- SQLite

def sqlite_worker(worker, first, last):
    """Prints the number of each increment once its transaction has committed."""
    db = sqlite3.connect("count.db", timeout=60, isolation_level=None)
    db.execute("PRAGMA busy_timeout = 60000")
    for number in range(first, last):
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE counter SET n = n + 1")
        db.execute("INSERT INTO done VALUES (?, ?)", (worker, number))
        db.execute("COMMIT")
        print(number, flush=True)
    db.close()


def sqlite_counts(journal):
    db = sqlite3.connect("count.db", isolation_level=None)
    assert db.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0] == journal
    db.executescript("CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0); CREATE TABLE done (worker, number)")
    db.close()
    rng = random.Random(1)
    acknowledged, next_number = set(), {w: 0 for w in range(WORKERS)}
    running = {w: start(sqlite_worker, w, 0, INCREMENTS) for w in range(WORKERS)}
    try:
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.02, 0.3))
            worker = rng.randrange(WORKERS)
            numbers = [int(line) for line in killed(running[worker])]
            acknowledged.update((worker, n) for n in numbers)
            # An increment may have committed without its line; numbers go on behind a gap, so that none repeats.
            next_number[worker] += 1000
            done = sum(w == worker for w, _ in acknowledged)
            running[worker] = start(sqlite_worker, worker, next_number[worker], next_number[worker] + max(0, INCREMENTS - done))
        for worker, output in zip(list(running), finish(list(running.values()), 100)):
            acknowledged.update((worker, int(line)) for line in output.split())
    finally:
        for p in running.values():
            if p.poll() is None:
                p.kill()
    assert sh("sqlite3 count.db 'PRAGMA integrity_check'").strip() == "ok"
    db = sqlite3.connect("count.db")
    rows = set(db.execute("SELECT worker, number FROM done"))
    assert not acknowledged - rows, f"acknowledged, but gone: {sorted(acknowledged - rows)}"
    assert db.execute("SELECT n FROM counter").fetchone()[0] == db.execute("SELECT count(*) FROM done").fetchone()[0]
    assert len(rows - acknowledged) <= KILLS, "more commits without a line than there were kills"
    db.close()
    result({"integrity": "ok", "acknowledged and gone": 0, "at least": len(acknowledged) >= WORKERS * INCREMENTS - KILLS})


@program(needs=["sqlite3"], opaque=["count.db"], unlisted=["count.db-*"], limit=180)
def sqlite_with_a_rollback_journal_keeps_acknowledged_increments():
    sqlite_counts("delete")


@program(needs=["sqlite3"], opaque=["count.db"], unlisted=["count.db-*"], limit=180)
def sqlite_with_a_wal_keeps_acknowledged_increments():
    sqlite_counts("wal")


@program(needs=["sqlite3"], opaque=["*.db", "odd-name"])
def sqlite_works_under_any_name_and_dumps_the_same():
    """Also under a name no rule knows: its first bytes say what it is."""
    for name in ("named.db", "odd-name"):
        sh(f"""sqlite3 {name} 'CREATE TABLE t (a, b); BEGIN; INSERT INTO t VALUES (1, "x"); INSERT INTO t VALUES (2, "y"); COMMIT;'
        sqlite3 {name} 'UPDATE t SET b = b || a; DELETE FROM t WHERE a = 1; VACUUM; PRAGMA integrity_check;' > check-{name}
        sqlite3 {name} .dump > dump-{name}; sqlite3 {name} ".backup copy-{name}.db"; sqlite3 copy-{name}.db .dump | cmp - dump-{name}""")


# ---------------------------------------------------------------- LevelDB

def leveldb_writer(first):
    """Prints each key once its synchronous write has returned."""
    import plyvel
    db = plyvel.DB("store", create_if_missing=True, write_buffer_size=64 * 1024)
    for number in range(first, first + 100_000):
        db.put(b"key-%09d" % number, b"value-%d-" % number * 50, sync=True)
        print(number, flush=True)


@program(modules=["plyvel"], unlisted=["store/*"], limit=180)
def leveldb_keeps_synchronous_writes_of_killed_writers():
    import plyvel
    rng = random.Random(2)
    acknowledged, first = [], 0
    for _ in range(10):
        writer = start(leveldb_writer, first)
        try:
            writer.stdout.readline()  # the first put is through; its number is below all others
            time.sleep(rng.uniform(0.05, 0.4))
        finally:
            numbers = [first] + [int(line) for line in killed(writer)]
        acknowledged += numbers
        with_db = plyvel.DB("store", paranoid_checks=True)
        for number in acknowledged:
            assert with_db.get(b"key-%09d" % number) == b"value-%d-" % number * 50, f"key {number} was acknowledged and is gone"
        if rng.random() < 0.4:
            with_db.compact_range()
        with_db.close()
        first += 100_000
    assert len(acknowledged) >= 20
    result({"lost": 0})


@program(modules=["plyvel"], unlisted=["store/*"])
def leveldb_refuses_a_second_process():
    """LOCK is held by fcntl; nobody opens the store twice, and its content is the same when it is opened again."""
    import plyvel
    with plyvel.DB("store", create_if_missing=True) as db:
        with db.write_batch(sync=True) as batch:
            for i in range(1000):
                batch.put(b"%d" % i, json.dumps({"i": i}).encode())
        output = sh("""python3 - <<'END'
import plyvel
try:
    plyvel.DB("store")
    print("opened")
except plyvel.IOError:
    print("refused")
END""", PATH=os.path.dirname(os.sys.executable) + ":" + os.environ["PATH"])
        assert output.strip() == "refused", output
    with plyvel.DB("store") as db:
        result({k.decode(): v.decode() for k, v in db})
