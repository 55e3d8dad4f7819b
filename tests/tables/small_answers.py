"""Small answers of a file system that programs go by. The test in same_answers.rs runs it on the mount and on a plain directory, and
compares what it prints."""
import errno
import os
import subprocess
import sys
import time


def said(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]


def stranger(script, *args):
    subprocess.run([sys.executable, "-c", "import os, sys; " + script, *args], check=True)


def closes():
    """close() of a file whose name and directory are gone."""
    for how, there, who, wrote in [(how, there, who, wrote) for how in ("w", "r+", "a", "x", "w+") for there in (True, False)
                                   for who in ("own", "other") for wrote in ("before", "after", "both", "nothing")]:
        if there == (how == "x") or not there and how == "r+":
            continue
        # What others don't see yet they can't remove; and who takes its directory away has the close fail (C6).
        if not there and who == "other":
            continue
        for name in ("gone/f", "gone/f.json", "gone/f.txt", "gone/deep/f"):
            os.makedirs(os.path.dirname(name))
            if there:
                with open(name, "w") as f:
                    f.write("{}\n")
            f = open(name, how)
            if wrote in ("before", "both"):
                f.write('{"one": 1}\n')
                f.flush()
            if who == "own":
                os.unlink(name)
                os.removedirs(os.path.dirname(name)) if "deep" not in name else (os.rmdir("gone/deep"), os.rmdir("gone"))
            else:
                script = "os.path.exists(sys.argv[1]) and os.unlink(sys.argv[1]); d = os.path.dirname(sys.argv[1])\n" \
                         "while d: os.rmdir(d); d = os.path.dirname(d)"
                stranger(script, name)
            if wrote in ("after", "both"):
                f.write('{"two": 2}\n')
            print("close", how, name, "there" if there else "new", who, wrote, said(f.close), os.path.exists("gone"))


def appended():
    """Of an unfinished line every call tells the same length."""
    for name, text in (("added", "0123456789"), ("lines", "0123456789\n"), ("empty", ""), ("j.jsonl", "{}\n")):
        with open(name, "w") as f:
            f.write(text)
        for flags in (os.O_RDWR, os.O_WRONLY):
            fd = os.open(name, flags | os.O_APPEND)
            for part in (b"abc", b"d", b"\n", b"e"):
                os.write(fd, part)
                told = [os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_END), os.lseek(fd, 0, os.SEEK_CUR)]
                if flags == os.O_RDWR:
                    told += [len(os.pread(fd, 100, 0)), os.lseek(fd, 0, os.SEEK_HOLE)]
                print("append", name, flags, part, told, os.stat(name).st_size if part == b"\n" else "")
            os.close(fd)
            print("append", name, os.stat(name).st_size)


def atimes():
    """O_NOATIME leaves the access time alone."""
    for flags in (0, os.O_NOATIME):
        for how in (os.O_RDONLY, os.O_RDWR):
            with open("read", "w") as f:
                f.write("content")
            os.utime("read", (1000, 2000))
            fd = os.open("read", how | flags)
            os.read(fd, 100)
            os.close(fd)
            print("atime", flags, how, os.stat("read").st_atime == 1000)


def links():
    """The link count of what is open and has lost its name. (Who edits it would put it there again: the later commit wins.)"""
    for how in ("r", "a"):
        for lost in ("renamed over", "unlinked", "rewritten", "linked and renamed over", "renamed over by another"):
            for name in ("n", "n2", "o"):
                if os.path.exists(name):
                    os.unlink(name)
            for name in ("n", "o"):
                with open(name, "w") as f:
                    f.write(name)
            f = open("n", how)
            counts = [os.fstat(f.fileno()).st_nlink]
            if lost == "renamed over":
                os.rename("o", "n")
            elif lost == "renamed over by another":
                # Before a version is in place, its count is 1 again as soon as that is given up.
                time.sleep(0.5)
                stranger("os.rename('o', 'n')")
            elif lost == "unlinked":
                os.unlink("n")
            elif lost == "rewritten":
                with open("n", "w") as g:
                    g.write("again")
            else:
                os.link("n", "n2")
                counts.append(os.fstat(f.fileno()).st_nlink)
                os.rename("o", "n")
            counts.append(os.fstat(f.fileno()).st_nlink)
            print("links", how, lost, counts)
            f.close()


def as_user(group, do, *args):
    """Does it as an ordinary user who is in the file's group, or isn't."""
    child = os.fork()
    if child == 0:
        try:
            if group != "root":
                os.setgroups([2000] if group == "supplementary" else [])
                os.setgid(2000 if group == "own" else 3000)
                os.setuid(1000)
            do(*args)
        except OSError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def change(name, how):
    flags = {"write": os.O_RDWR, "ftruncate": os.O_RDWR, "empty": os.O_WRONLY | os.O_TRUNC, "add": os.O_WRONLY | os.O_APPEND}
    if how == "truncate":
        os.truncate(name, 3)
    elif how == "chmod":
        os.chmod(name, os.stat(name).st_mode & 0o7777)
    else:
        fd = os.open(name, flags[how])
        if how == "ftruncate":
            os.ftruncate(fd, 2)
        else:
            os.write(fd, b"x\n")
        os.close(fd)


def set_ids():
    """Which set-id bits a change by an ordinary user leaves: it is in the file's group, or isn't."""
    if os.getuid():
        return
    os.chmod(".", 0o777)
    for name, mode in [(name, mode) for name in ("bits", "bits.log") for mode in (0o2644, 0o2666, 0o2676, 0o4666, 0o6666, 0o6677)]:
        for group in ("own", "supplementary", "other", "root"):
            for how in ("write", "truncate", "ftruncate", "empty", "add", "chmod"):
                with open(name, "w") as f:
                    f.write("content")
                os.chown(name, 1000, 2000)
                os.chmod(name, mode)
                as_user(group, change, name, how)
                print(name, oct(mode), group, how, oct(os.stat(name).st_mode & 0o7777))


def main():
    """The arguments say which parts."""
    for part in sys.argv[1:]:
        globals()[part]()


if __name__ == "__main__":
    main()
