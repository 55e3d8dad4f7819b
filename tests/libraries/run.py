"""Runs the savers of savers.py on a mount and on the plain directory beside it; see scripts/libraries.

    run.py COMMITFS DIR [--saves N] [--kills N] [--seed N] [--no-plain] [NAME ...]

Each library saves some steps, and is killed in the middle of others at random moments (SIGKILL), while a reader looks all the
time. After each save that went well its step is what is found; after a kill what was there before, or the step as a whole.
"""
import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import savers

HERE = os.path.abspath(__file__)
LIMIT = 180  # seconds for one save, and for an import
SHOWN = 20  # seconds until what was saved has to be there


ANSWERS = sys.stdout


def say(text):
    print(text, file=ANSWERS, flush=True)


def keep_answers_apart():
    """What a library prints goes to the standard error: the standard output is for answers."""
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)


# The roles of other processes.

def save_and_end(saver, top, step):
    try:
        os.setsid()
        saver.begin(top)
        saver.save(top, step)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def stand_by(name, top):
    """Has the library imported, and forks a process for each save that is asked for."""
    saver = savers.ALL[name]()
    saver.prepare()
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            save_and_end(saver, top, int(line))
        say(f"{child}")
        _, status = os.waitpid(child, 0)
        say(f"{os.waitstatus_to_exitcode(status)}")


def save_once(name, top, step):
    """For libraries that can't be forked."""
    saver = savers.ALL[name]()
    saver.prepare()
    say("ready")
    sys.stdin.readline()
    save_and_end(saver, top, step)


def read_on(name, top):
    saver = savers.ALL[name]()
    if getattr(saver, "reads_itself", False):
        saver.prepare()
    looks, mixed = 0, []
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    say("ready")
    while not ended:
        looks += 1
        try:
            saver.found(top)
        except savers.Mixed as e:
            mixed.append(str(e))
        except FileNotFoundError:
            pass  # an old one is being removed
        except Exception as e:
            mixed.append(f"{type(e).__name__}: {e}")
        time.sleep(0.002)
    say(json.dumps({"looks": looks, "mixed": mixed}))


# The savers, from outside.

def start(*role):
    process = subprocess.Popen([sys.executable, HERE, *map(str, role)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n", f"{role}: did not begin"
    return process


class Forking:
    def __init__(self, name, top):
        self.process = start("--stand-by", name, top)

    def begin(self, step):
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(LIMIT)


class Starting:
    def __init__(self, name, top):
        self.name, self.top, self.process = name, top, None

    def begin(self, step):
        self.process = start("--save", self.name, self.top, step)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.pid

    def end(self):
        return self.process.wait(LIMIT)

    def close(self):
        pass


def found(saver, top):
    try:
        return saver.found(top)
    except savers.Mixed as e:
        return f"mixed: {e}"
    except Exception as e:
        return f"mixed: {type(e).__name__}: {e}"


def one_side(name, top, saves, kills, rng, is_plain):
    """Gives what was seen: how many looks, which mixtures while saving, which after kills, what else went wrong."""
    saver = savers.ALL[name]()
    if getattr(saver, "reads_itself", False):
        saver.prepare()
    forks = getattr(saver, "forks", True)
    saving = (Forking if forks else Starting)(name, top)
    reader = start("--read", name, top)
    wrong, after_kills, whole_after_kills, step, took = [], [], 0, 0, 1.0
    try:
        def save_whole():
            nonlocal step, took
            step += 1
            began = time.monotonic()
            saving.begin(step)
            status = saving.end()
            took = time.monotonic() - began
            if status != 0:
                wrong.append(f"save {step} ended with {status}")
            until = time.monotonic() + (0 if is_plain else SHOWN)
            while (seen := found(saver, top)) != step and time.monotonic() < until:
                time.sleep(0.05)
            if seen != step:
                wrong.append(f"save {step} went well, and {seen} is there")
            return seen

        last = None
        for _ in range(saves):
            last = save_whole()
        for _ in range(kills):
            step += 1
            pid = saving.begin(step)
            time.sleep(rng.uniform(0, took * 1.1))
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                try:
                    os.kill(pid, signal.SIGKILL)  # it hasn't come to its own group yet
                except ProcessLookupError:
                    pass
            saving.end()
            seen = found(saver, top)
            if isinstance(seen, str):
                after_kills.append(seen)
            elif not is_plain and seen not in (last, step):
                # Its close was answered, and what becomes of it is decided in a moment.
                time.sleep(2)
                if (seen := found(saver, top)) not in (last, step):
                    wrong.append(f"killed at step {step}: {seen} is there, and {last} was")
            whole_after_kills += seen == step
            last = save_whole()
    finally:
        saving.close()
        reader.send_signal(signal.SIGTERM)
        told = json.loads(reader.stdout.read() or '{"looks": 0, "mixed": ["the reader ended"]}')
        reader.wait(LIMIT)
    return {**told, "after_kills": after_kills, "whole_after_kills": whole_after_kills, "wrong": wrong, "last": last}


def mounted(binary, top):
    return subprocess.run([binary, "mount", top], stdin=subprocess.DEVNULL, timeout=60).returncode == 0


def on_mount(binary, name, top, saves, kills, rng):
    os.makedirs(f"{top}/.commitfs", exist_ok=True)
    with open(f"{top}/.commitfs/rules.toml", "w") as f:
        f.write(savers.ALL[name].rules)
    if not mounted(binary, top):
        raise SystemExit(f"libraries: {binary} mount {top} failed")
    try:
        seen = one_side(name, top, saves, kills, rng, False)
        status = json.loads(subprocess.run([binary, "status", "--json", "--keep-errors", top], capture_output=True, text=True).stdout)
        seen["rejected"] = status["rejected"]["count"]
        seen["rounds"] = status["groups"]["published"]
    finally:
        if subprocess.run([binary, "umount", "--wait", top], timeout=60).returncode != 0:
            subprocess.run([binary, "umount", "--force", top], timeout=60)
    saver = savers.ALL[name]()
    left = seen["last"]
    if isinstance(saver, savers.Directories):
        left = saver.found(top, half_counts=False)  # what a killed `rmtree` has left is there again without the daemon
    elif not getattr(saver, "reads_itself", False):
        left = found(saver, top)
    if left != seen["last"]:
        seen["wrong"].append(f"after the unmount {left} is there, and {seen['last']} was saved last")
    return seen


def versions(saver):
    return ", ".join(f"{m} {importlib.metadata.version(DISTRIBUTIONS.get(m, m))}" for m in saver.modules)


DISTRIBUTIONS = {"orbax": "orbax-checkpoint"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("dir")
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("names", nargs="*")
    args = parser.parse_intermixed_args()
    failed = False
    for name in args.names or savers.ALL:
        saver = savers.ALL[name]
        missing = [m for m in saver.modules if importlib.util.find_spec(m) is None]
        if missing:
            say(f"{name}: not installed: {', '.join(missing)}")
            failed = True
            continue
        sides = {}
        for side in ("commitfs",) if args.no_plain else ("commitfs", "plain"):
            top = tempfile.mkdtemp(prefix=f"libraries-{name}-", dir=args.dir)
            rng = random.Random(args.seed)
            try:
                if side == "plain":
                    sides[side] = one_side(name, top, args.saves, args.kills, rng, True)
                else:
                    sides[side] = on_mount(args.binary, name, top, args.saves, args.kills, rng)
            finally:
                shutil.rmtree(top, ignore_errors=True)
        say(f"{name} ({versions(saver)})")
        for side, seen in sides.items():
            more = f"; {seen['rounds']} rounds published, {seen['rejected']} in rejected" if side == "commitfs" else ""
            say(f"  {side}: {seen['looks']} looks, {len(seen['mixed'])} mixed; of {args.kills} kills {len(seen['after_kills'])} left a mixture, "
                f"{seen['whole_after_kills']} came after the whole was saved{more}")
            for text in (seen["wrong"] + seen["mixed"] + seen["after_kills"])[:3]:
                say(f"    {text}")
        bad = sides["commitfs"]
        failed |= bool(bad["mixed"] or bad["after_kills"] or bad["wrong"])
    return 1 if failed else 0


if __name__ == "__main__":
    role = sys.argv[1:2]
    if role and role[0].startswith("--"):
        keep_answers_apart()
    if role == ["--stand-by"]:
        stand_by(sys.argv[2], sys.argv[3])
    elif role == ["--save"]:
        save_once(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif role == ["--read"]:
        read_on(sys.argv[2], sys.argv[3])
    else:
        sys.exit(main())
