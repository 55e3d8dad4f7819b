"""Shells, coreutils and the small tools that people rewrite files with."""
import os
import subprocess

from harness import program, read, sh, write

SHELL_LINES = r"""
echo one > plain; echo two >> plain
{ date -u -d @0 +%F; uname -s; echo end; } > group
( echo a; echo b ) > subshell
exec 3> kept; echo first >&3; /bin/echo second >&3; exec 3>&-
cat > here <<END
line $((1 + 1))
END
for i in 1 2 3 4 5; do echo "$i"; done > loop
while read -r n; do echo "$((n * n))"; done < loop > squares
: > empty
echo replaced > loop
(set -C; echo mine > claimed; ! echo yours > claimed) 2> /dev/null
echo over >| claimed
printf 'abcdef' > patched; printf 'XY' 1<> patched
cat < loop > /dev/null; echo both > out 2>&1; { echo err >&2; echo std; } > split.1 2> split.2
echo early > closed; { echo late; } > closed
echo via-stdout > /dev/stdout | cat > piped
false > status || echo "$?" >> status
test "$(cat plain)" = "one
two"
test "$(cat kept)" = "first
second"
test "$(cat patched)" = XYcdef
test "$(cat claimed)" = over
"""


@program(needs=["bash"])
def bash_redirections_write_what_they_say():
    sh(SHELL_LINES + r"""
    tee >(sort -r > reversed; echo > done.1) < loop > /dev/null; while [ ! -e done.1 ]; do sleep 0.01; done
    exec {fd}> named; echo named >&"$fd"; exec {fd}>&-
    coproc cat > coproc.out; echo talk >&"${COPROC[1]}"; eval "exec ${COPROC[1]}>&-"; wait
    echo "all" &> ampersand; echo more &>> ampersand
    mapfile -t lines < squares; printf '%s;' "${lines[@]}" > mapped
    (trap 'echo trapped > on-exit' EXIT; exit 0)
    for i in $(seq 50); do echo "$i" > counter; test "$(< counter)" = "$i"; done
    for i in $(seq 20); do (echo "$i" > "job-$i") & done; wait; cat job-* | sort -n > jobs
    """)


@program(needs=["dash"])
def dash_redirections_write_what_they_say():
    sh(SHELL_LINES + r"""
    (trap 'echo trapped > on-exit' EXIT; exit 0)
    for i in 1 2 3 4 5 6 7 8 9; do echo "$i" > counter; read -r n < counter; test "$n" = "$i"; done
    """, shell="dash")


@program()
def cp_and_mv_and_install_copy_contents_and_modes():
    sh(r"""
    seq 1000 > a; chmod 640 a; touch -d @1000000000 a
    cp a b; cp -p a c; test "$(stat -c %Y c)" = 1000000000
    echo small > d; cp a d; cp --backup=numbered b d; cp -u a e; cp --sparse=always a f; cp --remove-destination b f
    mkdir -p dir/sub; cp a b c dir; cp -r dir copy; cp -l a linked; cp -s "$PWD/a" soft; rm soft; (cd dir/sub; ln -s ../a soft)
    mv b moved; echo old > target; mv moved target; mv -n c target || true; mv -b a target; mv dir/sub dir2
    install -m 755 target tool; install -D -m 600 target deep/er/est; install -d -m 711 closed; install -b -m 644 d tool
    mkdir full; mv target d full; rmdir closed; rm -r copy
    """)


@program()
def ln_makes_hard_and_symbolic_links():
    sh(r"""
    echo content > a; ln a b; test "$(stat -c %h a)" = 2; test "$(stat -c %i a)" = "$(stat -c %i b)"
    ln -s a soft; ln -sfn b soft; test "$(readlink soft)" = b; ln -s missing dangling
    ln -f a c; mkdir d; ln -s ../a d/up; ln -sf ../b d/up; cat d/up > through; rm b; test "$(stat -c %h a)" = 2
    echo through-link > soft; cat soft > again
    """)


@program()
def tee_writes_all_its_files():
    sh(r"""
    seq 500 | tee one two three > four; seq 3 | tee -a one two > /dev/null; cmp one two
    tail -n 3 one > last; seq 5 | tee self | tee self2 > /dev/null
    """)


@program()
def sort_and_shuf_and_uniq_rewrite_their_input():
    sh(r"""
    seq 2000 | tac > numbers; sort -n -o numbers numbers; test "$(head -n 1 numbers)" = 1
    printf 'b\na\nb\n' > words; sort -u words -o words; uniq words counted
    shuf --random-source=/dev/zero -o shuffled numbers; sort -n shuffled -o shuffled; cmp numbers shuffled
    sort -m -n numbers shuffled -o merged -S 10K -T .; comm -12 numbers shuffled > common
    """)


@program()
def split_and_csplit_give_back_the_whole():
    sh(r"""
    seq 5000 > all; split -l 700 all part-; cat part-* > joined; cmp all joined
    split -b 4096 -d all bytes-; cat bytes-* > joined; cmp all joined
    split -n 3 --filter='cat > "$FILE.x"' all third-; cat third-*.x > joined; cmp all joined
    csplit -s -f piece- all /1000/ /2000/; cat piece-* > joined; cmp all joined
    """)


@program()
def truncate_and_fallocate_set_sizes():
    sh(r"""
    seq 1000 > f; truncate -s 100 f; truncate -s +50 f; test "$(stat -c %s f)" = 150; truncate -s 0 f; echo again > f
    truncate -s 1M sparse; truncate -r f like; truncate -s %4096 f; truncate -s '<10' like; fallocate -l 8192 reserved
    test "$(stat -c %s reserved)" = 8192; head -c 16 /dev/zero | cmp - <(head -c 16 sparse)
    """)


@program()
def dd_writes_blocks_in_place():
    sh(r"""
    dd if=/dev/zero of=f bs=1k count=64 status=none; printf middle | dd of=f bs=1 seek=3000 conv=notrunc status=none
    test "$(stat -c %s f)" = 65536; dd if=f of=g bs=4k skip=0 iflag=fullblock conv=fsync status=none; cmp f g
    printf tail | dd of=g oflag=append conv=notrunc status=none; dd if=g of=h bs=7 conv=swab,fdatasync status=none
    dd if=/dev/null of=g bs=1k seek=10 status=none; test "$(stat -c %s g)" = 10240
    printf x | dd of=hole bs=1 seek=1048576 conv=sparse status=none; printf excl | dd of=new conv=excl status=none
    ! printf no | dd of=new conv=excl status=none 2> /dev/null; ! printf no | dd of=none conv=nocreat status=none 2> /dev/null
    """)


@program()
def chmod_touch_mkdir_and_rm_change_names_and_modes():
    sh(r"""
    umask 027; echo a > f; mkdir d; umask 022; mkdir -p x/y/z; mkdir -m 1777 sticky; mkfifo -m 600 pipe
    chmod u+x f; touch -d @1234567890.5 f; test "$(stat -c %.1Y f)" = 1234567890.5; touch -r f g; touch new; rm -f new
    chmod g+s d; echo b > d/in; echo locked > ro; chmod 444 ro; rm -rf x; mktemp -p . tmpXXXXXX > name; rm "$(cat name)" name
    echo kept > f; test "$(stat -c %a f)" = 740
    """)


@program()
def md5sum_check_and_find_agree_with_what_was_written():
    sh(r"""
    for i in $(seq 30); do mkdir -p "t/$((i % 5))"; seq "$i" > "t/$((i % 5))/$i"; done
    find t -type f | sort | xargs md5sum > sums; md5sum -c --quiet sums; find t -type f -size -1k -o -newer sums | sort > found
    find t -name '1*' -exec sh -c 'echo more >> "$1"' _ {} \; ; du -a --apparent-size t | sort > /dev/null; wc -c t/*/* > counts
    find t/4 -delete; ls -R t > listing
    """)


@program(needs=["jq"])
def jq_rewrites_documents():
    sh(r"""
    jq -n '{step: 0, list: [], name: "ä"}' > state.json
    for i in $(seq 20); do jq --argjson i "$i" '.step = $i | .list += [$i]' state.json > state.tmp && mv state.tmp state.json; done
    test "$(jq .step state.json)" = 20
    for i in $(seq 20); do out=$(jq '.step += 1' state.json); printf '%s\n' "$out" > state.json; done
    jq -e '.step == 40 and (.list | length) == 20' state.json > /dev/null; jq -c . state.json > compact.json
    """)


@program(needs=["jq", "sponge"])
def sponge_rewrites_the_file_it_reads():
    sh(r"""
    echo '{"n": 0}' > n.json; for i in $(seq 20); do jq '.n += 1' n.json | sponge n.json; done; test "$(jq .n n.json)" = 20
    seq 3000 > big; sort -r big | sponge big; test "$(head -n 1 big)" = 999; echo more | sponge -a big
    """)


@program(needs=["sed"])
def sed_edits_in_place():
    sh(r"""
    seq 100 > a; cp a b; chmod 600 b; sed -i 's/1/one/g' a b; sed -i.bak '2,5d' a; sed -i'orig-*' '$d' b
    ln -s a soft; sed -i --follow-symlinks 's/^9/nine/' soft; test -L soft; sed -s -i '1i\# head' a b; sed -n -i '/one/p' b
    sed 'w written' a > /dev/null; test "$(stat -c %a b)" = 600
    """)


@program(needs=["awk", "ed"], limit=60)
def awk_and_ed_write_files():
    sh(r"""
    seq 50 | awk '{ print > ("mod-" $1 % 3) } END { close("mod-0"); print "end" >> "mod-0" }'
    printf '1\n2\n3\n' > f; printf '2d\na\nnew\n.\nw\nq\n' | ed -s f; test "$(sed -n 3p f)" = new
    """)


@program(needs=["vim"])
def vim_saves_in_every_backup_mode():
    for mode in ("yes", "no", "auto"):
        write(f"{mode}.txt", "alpha\nbeta\ngamma\n")
        os.chmod(f"{mode}.txt", 0o640)
        sh(f"vim -N -u NONE -i NONE -es -c 'set backupcopy={mode}' -c '%s/beta/BETA/' -c 'wq' {mode}.txt")
        sh(f"vim -N -u NONE -i NONE -es -c 'set backupcopy={mode} backup backupskip=' -c 'call append(3, [\"last\"])' -c 'w' -c 'w' -c 'q' {mode}.txt")
        assert read(f"{mode}.txt") == "alpha\nBETA\ngamma\nlast\n"
    sh("ln -s yes.txt soft; vim -N -u NONE -i NONE -es -c '1d' -c 'wq' soft; test -L soft")
    sh("vim -N -u NONE -i NONE -es -c 'set noswapfile undofile undodir=.' -c 'normal ix' -c 'w new.txt' -c 'wq! other.txt' no.txt; rm -f .*un~")


@program(needs=["flock"])
def flock_serialises_counting_shells():
    """The counter is a file of its own; only the lock file is shared while open."""
    write("count", "0\n")
    sh(r"""
    for w in 1 2 3 4 5; do
      ( for i in $(seq 10); do ( flock 9; n=$(cat count); echo "$((n + 1))" > count ) 9> count.lock; done ) &
    done; wait; test "$(cat count)" = 50
    """)


def follow(name):
    """`tail -f` sees every line of a file that shells go on appending to."""
    write(name, "0\n")
    tail = subprocess.Popen(["tail", "-n", "+1", "-f", name], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        for i in range(1, 21):
            sh(f"echo {i} >> {name}")
        seen = [tail.stdout.readline() for _ in range(21)]  # a missing line ends at the program's time limit
    finally:
        tail.kill()
        tail.wait(10)
    assert seen == [f"{i}\n" for i in range(21)], seen


@program(limit=60)
def tail_follows_a_log():
    follow("run.log")


@program(limit=60)
def tail_follows_appended_records():
    follow("records.jsonl")
