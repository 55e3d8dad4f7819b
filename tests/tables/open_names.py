"""Every way to have a file open, while its name is exchanged, renamed or linked: what the names hold in the end. The
test in renames.rs runs it on the mount and on a plain directory, and compares what it prints.

Not among them: a rename over a file that is open for writing. There the later commit wins (C2), as the file that is
replaced would be lost on the plain directory.
"""
import ctypes
import os
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
EXCHANGE = 2


def exchange(one, other):
    if LIBC.renameat2(-100, one.encode(), -100, other.encode(), EXCHANGE):
        raise OSError(ctypes.get_errno(), "exchange")


def operate(what):
    operation, one, other = what.split(" ")
    {"exchange": exchange, "rename": os.rename, "link": os.link}[operation](one, other)


def stranger():
    """A process that was there before anything was opened."""
    for line in sys.stdin:
        try:
            operate(line.strip())
            print("done", flush=True)
        except OSError as error:
            print(error.errno, flush=True)


def prepare(names, created):
    for name in os.listdir("."):
        os.unlink(name)
    for name, text in names.items():
        if name not in created:
            with open(name, "w") as f:
                f.write(text)


KINDS = {  # how it is opened, the suffix of its name, whether it is there before
    "rewriter": ("w", "", True),
    "reading rewriter": ("w+", "", True),
    "editor": ("r+", "", True),
    "appender": ("a", "", True),
    "new": ("w", "", False),
    "claim": ("x", "", False),
    "stream": ("w", ".txt", False),
    "direct": ("r+", ".log", True),
}


def run(servant, kind, operation, who, wrote, synced):
    mode, suffix, exists = KINDS[kind]
    a, b, c = "a" + suffix, "b", "c" + suffix
    prepare({a: "first\n", b: "second, longer\n"}, [] if exists else [a])
    f = open(a, mode)

    def write(text):
        if kind == "editor":
            f.seek(0, 2)
        f.write(text)
        f.flush()
        if synced:
            os.fsync(f.fileno())
    if wrote in ("before", "both"):
        write("one\n")
    what = {"exchange": f"exchange {a} {b}", "exchange back": f"exchange {b} {a}",
            "rename": f"rename {a} {c}", "link": f"link {a} {c}"}[operation]
    if who == "own":
        operate(what)
    else:
        servant.stdin.write(what + "\n")
        servant.stdin.flush()
        said = servant.stdout.readline().strip()
        if said != "done":
            f.close()
            return said
    if wrote in ("after", "both"):
        write("two\n")
    f.close()
    return {name: open(name).read() for name in sorted(os.listdir(".")) if name != ".commitfs"}


def main():
    servant = subprocess.Popen([sys.executable, __file__, "stranger"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for kind in KINDS:
        for operation in ("exchange", "exchange back", "rename", "link"):
            for who in ("own", "stranger"):
                # What nobody else sees yet, nobody else renames (C6).
                if who == "stranger" and kind in ("new", "stream"):
                    continue
                for wrote in ("before", "after", "both", "nothing"):
                    for synced in (False, True) if wrote == "both" else (False,):
                        found = run(servant, kind, operation, who, wrote, synced)
                        print(kind, "|", operation, "|", who, "|", wrote, "|", "synced" if synced else "", "|", found)
    servant.stdin.close()


if __name__ == "__main__":
    stranger() if sys.argv[1:] == ["stranger"] else main()
