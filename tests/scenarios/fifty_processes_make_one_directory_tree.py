"""Fifty jobs start at once; each makes the same output tree (exist_ok) and probes every directory of it: write .write_test, read it,
remove it. All probes share that one name. Errors are no worse than on a plain directory: the same job run below /tmp, or
whatever TMPDIR says, sets the measure; there, a probe may find that another one has removed its file. (C2, C6, C11)

Holds on a plain directory too.
"""
import collections
import errno
import os
import tempfile

from _scenario import main, parallel

PROCESSES, ROUNDS = 50, 4
TREE = ["out", "out/logs", "out/checkpoints/epoch-1", "out/checkpoints/epoch-2", "out/a/b/c/d"]
# By its design the probe can meet these when another one's unlink comes between; see the plain directory.
EXPECTED = {("read", "ENOENT"), ("unlink", "ENOENT")}


def job(top, who):
    errors = collections.Counter()
    for number in range(ROUNDS):
        for folder in TREE[who % len(TREE):] + TREE[:who % len(TREE)]:
            path = os.path.join(top, f"run-{number}", folder)
            probe = os.path.join(path, ".write_test")
            step = "mkdir"
            try:
                os.makedirs(path, exist_ok=True)
                step = "write"
                with open(probe, "w") as f:
                    f.write("test")
                step = "read"
                with open(probe) as f:
                    if f.read() not in ("test", ""):
                        errors["read", "something else"] += 1
                step = "unlink"
                os.unlink(probe)
            except OSError as e:
                errors[step, errno.errorcode[e.errno]] += 1
    return errors


def run(top):
    errors = sum(parallel([(job, top, who) for who in range(PROCESSES)]), collections.Counter())
    for number in range(ROUNDS):
        for folder in TREE:
            names = os.listdir(os.path.join(top, f"run-{number}", folder))
            # Whoever created it removed it later, or saw that it was gone.
            assert ".write_test" not in names, f"a probe was left in {folder}"
    return errors


def scenario():
    with tempfile.TemporaryDirectory() as plain:
        allowed = set(run(plain)) | EXPECTED
    errors = run(os.getcwd())
    worse = {kind: count for kind, count in errors.items() if kind not in allowed}
    assert not worse, f"errors that a plain directory does not give: {worse}"
    total = PROCESSES * ROUNDS * len(TREE)
    return f"{PROCESSES} processes, {total} probes, {sum(errors.values())} of them met another's unlink, no other error"


if __name__ == "__main__":
    main(scenario)
