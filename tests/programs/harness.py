"""What the programs share: how one is declared, how a shell line is run, how a tree is described.

A program is a function whose name is a claim. It runs in a fresh directory (its working directory), asserts what it
believes, and leaves files behind; run.py runs it on the mount and on a plain directory and compares the two trees.
What cannot be equal by nature is declared:
    opaque    globs (against the path in the tree) of files whose contents differ from run to run
    unlisted  globs of files whose very names differ; the program leaves the logical content in result.json instead
"""
import fnmatch
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

PROGRAMS = {}
SKIPPED = 77  # exit code of a program that cannot run here
COMMAND_LIMIT = 60

# One environment for every run, so that dates, locale and configuration of the machine do not show in the trees.
ENVIRONMENT = {
    "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent", "EDITOR": "false", "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1700000000", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_NAME": "c", "GIT_COMMITTER_EMAIL": "c@example.org", "GIT_COMMITTER_DATE": "1700000000 +0000",
}


class Program:
    def __init__(self, function, needs, modules, opaque, unlisted, limit):
        self.function, self.needs, self.modules = function, needs, modules
        self.opaque, self.unlisted, self.limit = opaque, unlisted, limit

    def missing(self):
        """Why it cannot run here, or None."""
        commands = [c for c in self.needs if not shutil.which(c)]
        modules = [m for m in self.modules if importlib.util.find_spec(m) is None]
        absent = [f"program {c}" for c in commands] + [f"Python module {m}" for m in modules]
        return f"missing: {', '.join(absent)}" if absent else None


def program(needs=(), modules=(), opaque=(), unlisted=(), limit=120):
    def declare(function):
        assert function.__name__ not in PROGRAMS, function.__name__
        PROGRAMS[function.__name__] = Program(function, needs, modules, opaque, unlisted, limit)
        return function
    return declare


def sh(script, shell="bash", code=0, **variables):
    """Runs a script in the working directory; its stdout. It stops at the first failing line."""
    run = subprocess.run([shell, "-euc", script], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                         timeout=COMMAND_LIMIT, env={**os.environ, **variables})
    assert run.returncode == code, f"{shell} ended with {run.returncode}, not {code}: {script.strip()}\n{run.stdout}{run.stderr}"
    return run.stdout


def write(path, data):
    with open(path, "w" if isinstance(data, str) else "wb") as f:
        f.write(data)


def read(path, mode="r"):
    with open(path, mode) as f:
        return f.read()


def result(value, path="result.json"):
    with open(path, "w") as f:
        json.dump(value, f, indent=1, sort_keys=True)


def mount_root():
    """The root of the mount of commitfs that the program runs below, or None on a plain directory."""
    device = os.stat(".").st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as mounts:
        found = [line.split()[4] for line in mounts if wanted == line.split()[2] and " - fuse.commitfs " in line]
    return found[0] if found else None


def is_on_mount():
    """Whether the program runs below a mount of commitfs, where it may ask for more than the plain directory gives."""
    return mount_root() is not None


def overwritten_updates():
    """{path in the working directory: saves} that took back somebody's update, as status tells them; nothing on a plain directory."""
    root = mount_root()
    if root is None:
        return {}
    here = os.path.relpath(os.getcwd(), root) + "/"
    with open(os.path.join(root, ".commitfs", "status.json")) as f:
        status = json.load(f)
    return {o["path"][len(here):]: o["count"] for o in status["overwritten"] if o["path"].startswith(here)}


def start(function, *args):
    """Runs one of this directory's functions in a process of its own: `module.function` with JSON arguments."""
    here = os.path.dirname(os.path.abspath(__file__))
    code = f"import sys; sys.path.insert(0, {here!r}); import json, {function.__module__} as m; m.{function.__name__}(*json.loads(sys.argv[1]))"
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def finish(processes, limit=COMMAND_LIMIT):
    """Waits for all; their outputs. A failed or hung one fails the program, and none is left behind."""
    end, outputs = time.monotonic() + limit, []
    try:
        for p in processes:
            outputs.append(p.communicate(timeout=max(0.1, end - time.monotonic()))[0])
            assert p.returncode == 0, f"a process ended with {p.returncode}"
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
    return outputs


def killed(process):
    """SIGKILL, then everything it had printed: complete lines only."""
    process.send_signal(signal.SIGKILL)
    text = process.communicate(timeout=COMMAND_LIMIT)[0]
    return text[:text.rfind("\n") + 1].splitlines()


def describe(top, opaque, unlisted):
    """{path: what it is} for a tree: type, mode, owner, link target, own xattrs, and the digest of the content,
    in which the tree's own path counts as TOP (git notes it in places)."""
    tree = {}
    for folder, folders, files in os.walk(top):
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, top)
            if any(fnmatch.fnmatch(relative, g) for g in unlisted):
                continue
            s = os.lstat(path)
            what = {"type": stat.filemode(s.st_mode)[0], "mode": oct(stat.S_IMODE(s.st_mode)), "owner": [s.st_uid, s.st_gid]}
            if stat.S_ISLNK(s.st_mode):
                what["target"] = os.readlink(path)
            elif not any(fnmatch.fnmatch(relative, g) for g in opaque):
                what["xattrs"] = {n: os.getxattr(path, n).hex() for n in sorted(os.listxattr(path))
                                  if n.startswith("user.") and not n.startswith("user.commitfs.")}
                if stat.S_ISREG(s.st_mode):
                    content = read(path, "rb").replace(top.encode(), b"TOP")
                    what["content"] = f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}"
            tree[relative] = what
    return tree
