#!/usr/bin/env python3
"""Runs other people's test suites in a directory and prints a line for each test: NAME STATE.

    tests/conformance/suites.py SUITE DIR

SUITE is python (CPython's own tests of files), stress-ng, fio, git or rsync. scripts/conformance runs each on a mount and on the
plain directory, and compares the lines. A state is ok, skipped, absent (this version of the suite doesn't know it), failed…, no-end (it ran out of
time), or for a module of CPython's that ended without having run all its tests: crashed…. What the tests say goes to stderr. Exit code 0 when the suite ran, whatever it found, 3
when it isn't installed.
"""
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile

# CPython's modules that work with files; what they do with sockets and processes is the same everywhere.
PYTHON = """test_bufio test_bz2 test_compileall test_configparser test_csv test_dbm test_dbm_dumb test_dbm_gnu test_dbm_ndbm test_fcntl test_file test_file_eintr
test_filecmp test_fileinput test_fileio test_genericpath test_glob test_gzip test_io test_largefile test_linecache test_logging test_lzma test_mailbox
test_mmap test_netrc test_os test_pathlib test_posix test_posixpath test_py_compile test_shelve test_shutil test_sqlite3 test_tarfile
test_tempfile test_unicode_file test_unicode_file_functions test_uu test_wave test_zipfile test_zipimport""".split()

# name -> operations: file systems' stressors that end by themselves. (Of its class "filesystem" without those that use no file of the
# directory: binderfs, bind-mount, eventfd, ioprio, procfs.)
STRESSORS = {
    "access": 200, "acl": 20, "aiol": 50, "chattr": 20, "chdir": 100, "chmod": 100, "chown": 100, "copy-file": 20, "dentry": 200,
    "dir": 200, "dirdeep": 50, "dirmany": 100, "dnotify": 20, "dup": 200, "fallocate": 20, "fanotify": 20, "fcntl": 200, "fiemap": 20,
    "file-ioctl": 100, "filename": 50, "flock": 200, "fpunch": 5, "fsize": 50, "fstat": 100, "getdent": 50, "handle": 100, "hdd": 50,
    "inode-flags": 50, "inotify": 20, "io": 50, "io-uring": 100, "iomix": 50, "lease": 200, "link": 50, "locka": 200, "lockf": 200,
    "lockofd": 200, "metamix": 5, "mknod": 50, "mmapaddr": 20, "mmapfiles": 2, "mmapfork": 2, "msync": 20, "open": 200, "pidfd": 50,
    "readahead": 20, "rename": 200, "revio": 50, "seek": 100, "sendfile": 50, "splice": 100, "symlink": 50, "sync-file": 5, "tee": 50,
    "touch": 200, "unlink": 50, "utime": 200, "verity": 5, "vm-splice": 50, "xattr": 50,
}

# name -> options of fio; each writes 8 MiB and reads them back with checksums.
FIO = {
    f"{rw}-{engine}-{bs}{'-' + extra.lstrip('-').split('=')[0] if extra else ''}": [f"--rw={rw}", f"--ioengine={engine}", f"--bs={bs}", *extra.split()]
    for rw in ("write", "randwrite", "readwrite", "randrw")
    for engine, bs, extra in (
        ("psync", "4k", ""), ("psync", "3k", ""), ("psync", "64k", "--fsync=16"), ("pvsync2", "16k", ""), ("mmap", "4k", ""),
        ("libaio", "16k", "--iodepth=8"), ("io_uring", "16k", "--iodepth=8"), ("libaio", "64k", "--direct=1"), ("psync", "4k", "--overwrite=1"),
        ("psync", "16k", "--fallocate=keep"), ("psync", "16k", "--end_fsync=1"))
}

GIT_ENVIRONMENT = """export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
export GIT_AUTHOR_DATE=2001-01-01T00:00:00Z GIT_COMMITTER_DATE=2001-01-01T00:00:00Z
git config --global init.defaultBranch main; git config --global gc.auto 0; git config --global protocol.file.allow always
say() { git -C "$1" rev-parse HEAD; git -C "$1" ls-files -s; git -C "$1" status --porcelain; git -C "$1" fsck --full --strict 2>&1; }
fill() { for i in 1 2 3 4 5 6 7 8; do echo "$1 $i" > f$i; mkdir -p d$i/e; seq $i 400 > d$i/e/g; done; }
"""

# What they print must be the same.
GIT = {
    "commits": "git init -q r; cd r; for n in 1 2 3 4 5; do fill $n; git add -A; git commit -qm $n; done; say .",
    "branches": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; git switch -qc other; echo o > f1; git commit -qam o; git switch -q main
        echo m > f2; git commit -qam m; git merge -q -m merged other; git branch -d other; say .; git log --format=%s""",
    "conflict": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; git switch -qc other; echo o > f1; git commit -qam o; git switch -q main
        echo m > f1; git commit -qam m; git merge -q other || true; git diff --name-only --diff-filter=U; echo both > f1; git commit -qam both; say .""",
    "rebase": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; git switch -qc other; for n in 2 3 4; do fill $n; git commit -qam o$n; done
        git switch -q main; echo m > new; git add new; git commit -qm m; git switch -q other; git rebase -q main; say .; git log --format=%s""",
    "stash": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; fill 2; echo n > new; git stash -qu; say .; git stash pop -q; git status --porcelain
        git stash -q; git stash drop -q; git reset -q --hard; git clean -qfdx; say .""",
    "gc": """git init -q r; cd r; for n in 1 2 3 4 5 6; do fill $n; git add -A; git commit -qm $n; done; git repack -qad; git gc -q --prune=now
        git count-objects -v | grep -E '^(count|in-pack|packs|garbage)'; say .; git pack-refs --all; git tag -a t -m t; git update-ref refs/heads/x HEAD; git branch""",
    "clones": """git init -q r; (cd r; fill 1; git add -A; git commit -qm 1); git clone -q r local; git clone -q --no-hardlinks r copied; git clone -q --bare r bare
        git clone -q --shared r shared; (cd local; fill 2; git commit -qam 2; git push -q ../bare main); git -C copied pull -q ../bare main; say copied; say shared; git -C bare log --format=%s""",
    "worktrees": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; git worktree add -q ../w; cd ../w; fill 2; git commit -qam 2; say .; cd ../r
        git worktree remove ../w; git worktree prune; git branch; say .""",
    "bisect": """git init -q r; cd r; for n in 1 2 3 4 5 6 7 8; do fill $n; git add -A; git commit -qm $n; done; git bisect start HEAD HEAD~7 > bisect.log
        git bisect run sh -c 'test $(head -c1 f1) -lt 5' | grep -c 'first bad'; git bisect reset > /dev/null 2>&1; rm bisect.log; say .""",
    "archives": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; git archive HEAD | tar -x -C .. --one-top-level=x; git bundle create -q ../b HEAD main
        git clone -q ../b ../from; say ../from; (cd ../x; find . -type f | sort | xargs sha256sum)""",
    "many at once": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; for n in 1 2 3 4 5 6; do (git branch b$n; git tag t$n; git stash list; git status --porcelain) & done; wait
        git branch --format='%(refname)' | sort; say .""",
    "config": """git init -q r; cd r; fill 1; git add -A; git commit -qm 1; for n in 1 2 3 4 5 6 7 8; do (for k in 1 2 3 4; do until git config --add x.y $n$k 2> /dev/null; do :; done; done) & done; wait
        git config --get-all x.y | sort; test ! -e .git/config.lock""",
}

RSYNC_ENVIRONMENT = """mkdir -p src/d/e; for i in 1 2 3 4 5 6; do seq $i 3000 > src/f$i; seq $i 50 > src/d/e/g$i; done; ln src/f1 src/hard; ln -s f1 src/soft
echo '{"a": 1}' > src/d/x.json; chmod 640 src/f2; chmod 750 src/d; touch -d 2001-01-01 src/f3 src/d/e src/d; dd if=/dev/zero of=src/sparse bs=1 count=1 seek=1M status=none
"""
RSYNC = {
    "archive": "rsync -a src/ dst; rsync -ain src/ dst; : again",
    "hard links": "rsync -aHX src/ dst; rsync -aHXin src/ dst; test dst/f1 -ef dst/hard",
    "sparse": "rsync -aS src/ dst; rsync -acin src/ dst; cmp src/sparse dst/sparse",
    "delete": "rsync -a src/ dst; rm -r src/d src/f4; rsync -a --delete src/ dst; rsync -acin --delete src/ dst",
    "delete late": "rsync -a src/ dst; rm -r src/d src/f4; echo n > src/f9; rsync -a --delete-after --delay-updates src/ dst; rsync -acin --delete src/ dst",
    "inplace": "rsync -a src/ dst; for i in 1 2 3; do seq $i 2900 > src/f$i; done; rsync -a --inplace --no-whole-file src/ dst; rsync -acin src/ dst",
    "append": "rsync -a src/ dst; seq 100 >> src/f5; rsync -a --append src/ dst; seq 100 >> src/f6; rsync -a --append-verify src/ dst; rsync -acin src/ dst",
    "partial": "head -c 5000 src/f1 > part; mkdir -p dst/.p; cp part dst/.p/f1; rsync -a --partial-dir=.p --no-whole-file src/ dst; rsync -acin --exclude=.p src/ dst",
    "backup": "rsync -a src/ dst; for i in 1 2; do seq $i 99 > src/f$i; rsync -ab --suffix=.$i src/ dst; done; rsync -ab --backup-dir=../old src/ dst; rsync -acin --exclude='*.[12]' src/ dst",
    "link-dest": "rsync -a src/ one; rsync -a --link-dest=../one src/ two; seq 5 > src/f1; rsync -a --link-dest=../two src/ three; test one/f2 -ef three/f2; rsync -acin src/ three",
    "copy-dest": "rsync -a src/ one; rsync -a --copy-dest=../one src/ two; rsync -a --compare-dest=../one src/ three; find three -type f | sort; rsync -acin src/ two",
    "checksum": "rsync -a src/ dst; touch src/f*; rsync -ac src/ dst; rsync -acin src/ dst",
    "fuzzy": "rsync -a src/ dst; mv src/f1 src/renamed; rsync -ay --delete-after --no-whole-file src/ dst; rsync -acin --delete src/ dst",
    "files-from": "printf 'f1\\nd/e/g1\\n' > list; rsync -a --files-from=list src/ dst; find dst | sort",
    "remove source": "rsync -a --remove-source-files src/ dst; find src -type f | sort; find dst | sort",
    "fake-super": "rsync -a --fake-super src/ dst; rsync -acin --no-perms --no-owner --no-group src/ dst",
    "twice at once": "mkdir dst; rsync -a src/ dst & rsync -a src/ dst; wait; rsync -acin src/ dst",
    "batch": "rsync -a src/ dst; seq 7 > src/f1; rsync -a --write-batch=b src/ dst; rsync -a src/ other; rsync -acin src/ dst; rsync -acin dst/ other",
}

# Runs one module of CPython's tests, without whatever its own runner prints between.
RUNNER = """
import importlib.util, os, sys, unittest
name, out = sys.argv[1], open(sys.argv[2], 'w', buffering=1)
from test import support
support.use_resources, support.verbose = [], 0
if importlib.util.find_spec('test.' + name) is None:
    out.write(f'{name} absent\\n')
    sys.exit()
class States(unittest.TextTestResult):
    def state(self, test, state):
        out.write(f'{test.id().replace(" ", "_")} {state}\\n')
    def addSuccess(self, test): self.state(test, 'ok')
    def addSkip(self, test, reason): self.state(test, 'skipped')
    def addExpectedFailure(self, test, error): self.state(test, 'ok')
    def addUnexpectedSuccess(self, test): self.state(test, 'failed')
    def addFailure(self, test, error): super().addFailure(test, error); self.state(test, 'failed')
    def addError(self, test, error): super().addError(test, error); self.state(test, 'failed')
    def addSubTest(self, test, part, error):
        super().addSubTest(test, part, error)
        if error: self.state(test, 'failed')
try:
    tests = unittest.defaultTestLoader.loadTestsFromName('test.' + name)
except unittest.SkipTest:
    tests = unittest.TestSuite()
unittest.TextTestRunner(resultclass=States, verbosity=0).run(tests)
"""


def need(*programs):
    missing = [p for p in programs if not shutil.which(p)]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        sys.exit(3)


def say(name, state):
    print(name.replace(" ", "-"), state, flush=True)


def run(args, limit, **options):
    """(Exit code or "no end", output), and nothing is left running."""
    process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options)
    try:
        output = process.communicate(timeout=limit)[0]
        return process.returncode, output.decode(errors="replace")
    except subprocess.TimeoutExpired:
        return "no-end", ""
    finally:
        try:
            os.killpg(process.pid, 9)
        except ProcessLookupError:
            pass


def python(directory):
    interpreter = "/usr/bin/python3"
    code, _ = run([interpreter, "-c", "import test.test_os"], 60)
    if code != 0:
        print("not installed: CPython's tests (scripts/install-deps conformance)", file=sys.stderr)
        sys.exit(3)
    for module in PYTHON:
        place = tempfile.mkdtemp(dir=directory)
        with tempfile.NamedTemporaryFile("r") as states:
            code, output = run([interpreter, "-c", RUNNER, module, states.name], 400, cwd=place, env={**os.environ, "TMPDIR": place})
            worst = {}
            for line in states:
                name, state = line.split()
                if worst.get(name) != "failed":
                    worst[name] = state
        for name, state in sorted(worst.items()):
            say(f"python::{name}", state)
        if code != 0:
            # Failed tests don't change its exit code.
            say(f"python::{module}", code if code == "no-end" else f"crashed-{code}")
        if "failed" in worst.values() or code != 0:
            print(f"{module}:\n{output}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)


def complaints(output):
    """What stress-ng says has failed, without numbers (its processes, counts and times are others each time)."""
    lines = {re.sub(r"\d+", "N", line.split("fail:", 1)[1]).strip() for line in output.splitlines() if "fail:" in line}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:6] if lines else ""


def stress_ng(directory):
    need("stress-ng")
    for name, operations in STRESSORS.items():
        place = tempfile.mkdtemp(dir=directory)
        os.chmod(place, 0o777)
        options = ["--temp-path", place, f"--{name}", "2", f"--{name}-ops", str(operations), "--timeout", "20", "--verify"]
        if name in ("hdd", "iomix", "fallocate", "readahead", "revio"):
            options += [f"--{name}-bytes", "8m"]
        code, output = run(["stress-ng", *options], 90)
        state = {0: "ok", 3: "skipped", 4: "skipped", "no-end": "no-end"}.get(code, f"failed-{code}")
        if "unrecognized option" in output:
            state = "absent"
        elif code == 0 and "skipping" in output:
            state = "skipped"
        said = complaints(output)
        say(f"stress-ng::{name}", f"{state}-{said}" if said else state)
        if state not in ("ok", "absent") or said:
            print(f"{name}:\n{output}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)


def fio(directory):
    need("fio")
    for name, options in FIO.items():
        place = tempfile.mkdtemp(dir=directory)
        code, output = run(["fio", "--name=f", f"--directory={place}", "--size=8m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", *options], 120)
        say(f"fio::{name}", {0: "ok", "no-end": "no-end"}.get(code, f"failed-{code}"))
        if code != 0:
            print(f"{name}:\n{output}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)


def scenarios(suite, directory, before, all_of_them):
    need(suite)
    for name, script in all_of_them.items():
        place = tempfile.mkdtemp(dir=directory)
        code, output = run(["bash", "-ec", before + script], 300, cwd=place, env={**os.environ, "LC_ALL": "C", "TZ": "UTC"})
        # The place has another name each time.
        output = output.replace(place, "PLACE")
        digest = hashlib.sha256(output.encode()).hexdigest()[:10]
        say(f"{suite}::{name}", f"ok-{digest}" if code == 0 else f"failed-{code}")
        print(f"{suite} {name}:\n{output}", file=sys.stderr)
        shutil.rmtree(place, ignore_errors=True)


def main():
    suites = {
        "python": python, "stress-ng": stress_ng, "fio": fio,
        "git": lambda d: scenarios("git", d, GIT_ENVIRONMENT, GIT),
        "rsync": lambda d: scenarios("rsync", d, RSYNC_ENVIRONMENT, RSYNC),
    }
    if len(sys.argv) != 3 or sys.argv[1] not in suites:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    os.umask(0o022)
    suites[sys.argv[1]](os.path.realpath(sys.argv[2]))


if __name__ == "__main__":
    main()
