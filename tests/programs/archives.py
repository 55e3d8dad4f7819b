"""Programs that copy whole trees and keep their history: cp -a, tar, rsync, git."""
import os

from harness import program, read, sh, write


def source_tree():
    """A tree with every kind of name that an archive has to carry; the same bytes and times in every run."""
    sh(r"""
    mkdir -p src/a/b src/empty; seq 5000 > src/big; echo small > src/a/small; : > src/a/b/none; printf '\0\1\2' > src/a/bin
    ln src/big src/a/hard; ln -s ../big src/a/soft; ln -s nowhere src/dangling; mkfifo src/fifo
    echo ä > 'src/a/with space and ä'; chmod 600 src/big; chmod 750 src/a/b; chmod 444 src/a/small
    find src -exec touch -h -d @1500000000 {} +
    """)
    for path in ("src/big", "src/a"):
        os.setxattr(path, "user.origin", b"here")


LISTING = "(cd {0}; find . -printf '%p %y %m %T@ %s %l %n\n' | sed -E 's/^(.* d [0-9]+ [0-9.]+) [0-9]+  [0-9]+$/\\1/' | sort)"


def same_tree(a, b):
    assert sh(LISTING.format(a)) == sh(LISTING.format(b)), sh(f"diff <({LISTING.format(a)}) <({LISTING.format(b)}) || true")


@program()
def cp_a_keeps_everything():
    source_tree()
    sh("cp -a src copy; cp -a src/. second-dir; cp -a copy/big over; cp -a src/a/small over 2> /dev/null || true")
    same_tree("src", "copy")
    same_tree("src", "second-dir")
    assert os.getxattr("copy/big", "user.origin") == b"here"


@program(needs=["tar"])
def tar_creates_and_extracts():
    source_tree()
    sh(r"""
    tar --sort=name -cf tree.tar src; mkdir out; tar -xpf tree.tar -C out; tar -df tree.tar
    tar --sort=name -czf tree.tgz --mtime=@0 src; mkdir out2; tar -xzf tree.tgz -C out2; gzip -t tree.tgz
    echo later > added; touch -d @1500000000 added; tar -rf tree.tar added; test "$(tar -tf tree.tar | tail -n 1)" = added
    tar --delete -f tree.tar added
    mkdir piped; tar -cf - src | tar -xpf - -C piped; xz -k -T1 tree.tar; xz -dc tree.tar.xz | cmp - tree.tar
    gzip -n -9 tree.tar; gunzip tree.tar.gz; bzip2 -k tree.tar; bunzip2 -t tree.tar.bz2
    rm added
    """)
    same_tree("src", "out/src")
    same_tree("src", "piped/src")
    sh("tar -xpf tree.tar -C out; chmod -R u+w out; tar -xpf tree.tar -C out --overwrite; cmp src/big out/src/a/hard")  # over what is there


@program(needs=["rsync"])
def rsync_copies_and_then_finds_nothing_to_do():
    source_tree()
    sh("rsync -aHX src/ copy/")
    same_tree("src", "copy")
    assert sh("rsync -aHXni src/ copy/") == "", "a second run would transfer something: a time or size changed by itself"
    # A commit splits hard links (C8), so the pair is made anew.
    sh(r"""
    echo changed >> src/big; rm src/a/hard; ln src/big src/a/hard; rm src/dangling; echo new > src/new; find src -exec touch -h -d @1500000100 {} +
    rsync -aHX --delete --backup --suffix=.orig src/ copy/; test -e copy/big.orig; rm copy/big.orig copy/*.orig || true
    rsync -aHX --delete src/ copy/; rsync -a --checksum --temp-dir=. src/a/ part/
    """)
    same_tree("src", "copy")
    sh('rsync -a --link-dest="$PWD/copy" src/ linked/; rsync -a --partial --delay-updates src/ delayed/')


@program(needs=["rsync"])
def rsync_inplace_and_append_edit_the_target():
    sh(r"""
    seq 20000 > a; touch -d @1500000000 a; mkdir t; rsync -t --inplace a t/; cmp a t/a
    sed -i '5000,5010s/^/x/' a; touch -d @1500000001 a; rsync -t --inplace --no-whole-file a t/a; cmp a t/a
    head -n 100 a > short; touch -d @1500000002 short; rsync -t --inplace short t/a; cmp short t/a
    seq 20001 30000 >> short; touch -d @1500000003 short; rsync -t --append short t/a; cmp short t/a
    seq 30001 31000 >> short; touch -d @1500000004 short; rsync -t --append-verify short t/a; cmp short t/a
    test "$(stat -c %Y t/a)" = 1500000004
    """)


GIT = "git -c gc.auto=0 -c pack.threads=1 -c init.defaultBranch=main -c advice.detachedHead=false"


def git(line):
    return sh(f"cd work && {GIT} {line}")


# The index holds times and inode numbers; a pack's bytes depend on the order in which objects were found.
@program(needs=["git"], opaque=["*/.git/index", "*.git/objects/pack/*", "*.git/objects/info/*", "*/.git/worktrees/*/index",
                                "*/.git/gc.*", "*/.git/logs/*"],
         unlisted=["*.git/objects/pack/*", "*.git/hooks/*"], limit=180)
def git_keeps_a_repository_whole():
    os.mkdir("work")
    git("init -q")
    for i in range(12):
        write(f"work/file-{i % 4}", f"revision {i}\n" * (i + 1))
        git("add -A && git commit -q -m 'change %d'" % i)
        assert git("status --porcelain") == ""
    git("checkout -q -b side HEAD~3")
    write("work/side", "side\n")
    git("add side && git commit -q -m side && git tag -a -m tagged v1")
    git("checkout -q main")
    git("merge -q -m merged side")
    git("repack -q -a -d")
    git("gc -q --prune=now")
    assert "missing" not in git("fsck --full --strict 2>&1")
    write("work/file-0", "stashed\n")
    git("stash -q && git stash pop -q")
    git("checkout -q -- file-0")
    git("mv file-1 renamed && git commit -q -m renamed")
    git("worktree add -q ../tree side && git worktree list > /dev/null")
    git("rebase -q --onto main~1 side~1 side 2>/dev/null || git rebase --abort || true")
    git("checkout -q main && git branch -q -f copy v1 && git branch -D copy -q")
    for i in range(20):  # the index and HEAD are rewritten by rename over and over
        git(f"checkout -q {'side' if i % 2 == 0 else 'main'} 2>/dev/null || true")
    git("checkout -q main")
    sh(f"{GIT} clone -q work cloned; {GIT} clone -q --bare --no-hardlinks work bare.git; cd cloned; {GIT} pull -q; {GIT} fsck --full")
    git("push -q ../bare.git main:pushed && git gc -q --aggressive --prune=now")
    git("fsck --full")
    assert git("status --porcelain") == ""
    assert read("work/renamed") == read("cloned/renamed")
    write("heads", git("rev-parse main side v1"))


@program(needs=["git"], opaque=["*/.git/index", "*/.git/logs/*"], unlisted=["*/.git/hooks/*", "*/.git/objects/*"])
def concurrent_git_commands_lock_each_other_out():
    """index.lock is created with O_EXCL: of commits started at the same time each either succeeds or says that it is locked."""
    os.mkdir("work")
    git("init -q && git commit -q --allow-empty -m start")
    made = sh(r"""cd work; for i in $(seq 8); do
      ( for try in $(seq 400); do git commit -q --allow-empty -m same 2> /dev/null && echo made && break; sleep 0.01; done ) & done; wait""")
    assert made.count("made") == 8, made
    assert git("rev-list --count HEAD").strip() == "9"
    git("fsck --full")
