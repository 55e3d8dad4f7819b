#!/usr/bin/env python3
"""Unmodified programs on a mount: the tree they leave equals the one they leave on a plain directory.

    tests/programs/run.py [--mount DIR] [--plain DIR] [--list] [--skip NAME]... [NAME...]

Each program (shell_tools, archives, databases, any_name, guarded_files, python_files; harness says what a program is) runs twice, each time in a fresh
directory and under a time limit: below the mount and below the plain directory (target/tmp when --plain is not given). With --plain alone both runs are there, which shows that the program itself gives equal trees. NAME selects
programs whose names contain it. A missing program or Python module is a failure when CI is set, else a skip.

Prints a line for each program, then "programs: N passed, M failed, K skipped". Exit code 0 when none failed, 1 when some
did, 2 when nothing could be run.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import harness

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TREE_LIMIT = 60


def load():
    import any_name, archives, databases, guarded_files, python_files, shell_tools  # noqa: F401  (importing declares their programs)
    return harness.PROGRAMS


def child(args, limit):
    """Runs this file with `args` in a session of its own; (exit code or None when time ran out, output)."""
    process = subprocess.Popen([sys.executable, os.path.abspath(__file__), *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True,
                               env={**os.environ, **harness.ENVIRONMENT})
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        try:
            output, _ = (os.killpg(process.pid, signal.SIGKILL), process.communicate(timeout=5))[1]
        except subprocess.TimeoutExpired:
            output = "and its processes cannot be killed"
        return None, f"no end within {limit} s\n{output}"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what the program left running
        except ProcessLookupError:
            pass


def one(name, directory):
    """The child's side: run program `name` in `directory`."""
    os.umask(0o022)
    os.chdir(directory)
    load()[name].function()


def tree(name, directory):
    declared = load()[name]
    print(json.dumps(harness.describe(directory, declared.opaque, declared.unlisted)))


def differences(mount, plain):
    lines = []
    for path in sorted(set(mount) | set(plain)):
        if path not in mount or path not in plain:
            lines.append(f"{path}: only on {'the plain directory' if path not in mount else 'the first tree'}")
        elif mount[path] != plain[path]:
            for key in sorted(set(mount[path]) | set(plain[path])):
                a, b = mount[path].get(key), plain[path].get(key)
                if a != b:
                    lines.append(f"{path}: {key} is {a}, on the plain directory {b}")
    return lines


def run_program(name, program, places):
    """None when it passed, else what went wrong."""
    trees = []
    for label, base in places:
        directory = os.path.join(base, name)
        code, output = child(["--mkdir", directory], TREE_LIMIT)
        if code == 0:
            code, output = child(["--one", name, directory], program.limit)
        if code != 0:
            return f"on {label}: {'exit code ' + str(code) if code is not None else 'hung'}\n{output}"
        code, output = child(["--tree", name, directory], TREE_LIMIT)
        if code != 0:
            return f"on {label}, reading the tree back: {output}"
        trees.append(json.loads(output))
    return "\n".join(differences(*trees)) or None


def indented(text):
    lines = text.rstrip().splitlines()
    return "\n".join("    " + line for line in (lines if len(lines) <= 60 else lines[:20] + ["..."] + lines[-40:]))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="More: the head of this file.")
    parser.add_argument("--mount", metavar="DIR", help="a directory on a commitfs mount")
    parser.add_argument("--plain", metavar="DIR", help="a plain directory")
    parser.add_argument("--list", action="store_true", help="print the programs' names")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave this one out")
    parser.add_argument("names", nargs="*", metavar="NAME")
    return parser, parser.parse_args()


def main():
    hidden = {"--one": one, "--tree": tree, "--mkdir": os.makedirs}
    if len(sys.argv) > 2 and sys.argv[1] in hidden:
        return hidden[sys.argv[1]](*sys.argv[2:])
    venv = os.path.join(ROOT, "target", "venv", "bin", "python")
    if os.path.exists(venv) and os.path.realpath(sys.prefix) != os.path.realpath(os.path.join(ROOT, "target", "venv")):
        os.execv(venv, [venv, os.path.abspath(__file__), *sys.argv[1:]])
    parser, args = arguments()
    programs = load()
    if args.list:
        print("\n".join(programs))
        return 0
    if not args.mount and not args.plain:
        parser.error("--mount DIR, --plain DIR or both are needed")
    unknown = [n for n in args.names + args.skip if not any(n in p for p in programs)]
    if unknown:
        parser.error(f"no program is called {', '.join(unknown)}; --list shows them")
    chosen = {n: p for n, p in programs.items() if (not args.names or any(a in n for a in args.names)) and n not in args.skip}

    def interrupted(number, _):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)
    bases, passed, failed, skipped = [], 0, 0, 0
    try:
        for label, directory in (("the mount", args.mount), ("the plain directory", args.plain or os.path.join(ROOT, "target", "tmp"))):
            base = os.path.abspath(directory or args.plain)
            os.makedirs(base, exist_ok=True)
            bases.append((label, tempfile.mkdtemp(prefix="programs-", dir=base)))
        if not args.mount:
            bases[0] = ("the plain directory, first run", bases[0][1])
        for name, program in chosen.items():
            begun = time.monotonic()
            reason = program.missing()
            problem = reason if reason and os.environ.get("CI") else None if reason else run_program(name, program, bases)
            if problem:
                failed += 1
                print(f"FAILED  {name}\n{indented(problem)}", flush=True)
            elif reason:
                skipped += 1
                print(f"SKIPPED {name}: {reason}", flush=True)
            else:
                passed += 1
                print(f"ok      {name} ({time.monotonic() - begun:.1f} s)", flush=True)
    except OSError as e:
        print(f"run.py: {e}", file=sys.stderr)
        return 2
    finally:
        for _, base in bases:
            try:
                subprocess.run(["rm", "-rf", base], timeout=60, stdin=subprocess.DEVNULL)
            except subprocess.TimeoutExpired:
                print(f"run.py: cannot remove {base}", file=sys.stderr)
    print(f"programs: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0 if passed else 2


if __name__ == "__main__":
    sys.exit(main())
