"""A hundred processes claim the same name with O_EXCL, a thousand rounds: exactly one wins each round, and the losers can read the
winner's pid at once. So it is with mkdir, link and the shell's `set -C`. (C6)

Holds on a plain directory too.
"""
import os
import subprocess
import time

from _scenario import main, parallel

PROCESSES, ROUNDS, OTHERS, SHELLS = 100, 1000, 50, 10


def claimant():
    won = []
    for number in range(ROUNDS):
        try:
            fd = os.open(f"claim-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            end = time.monotonic() + 20
            while not (text := pid_in(f"claim-{number}")).endswith("\n"):
                assert time.monotonic() < end, f"claim-{number} stays without its owner's pid: {text!r}"
            continue
        os.write(fd, b"%d\n" % os.getpid())
        os.close(fd)
        won.append(number)
    return os.getpid(), won


def pid_in(path):
    with open(path) as f:
        return f.read()


def by_other_means(who):
    own = f"own-{who}"
    with open(own, "w") as f:
        f.write(str(who))
    won = []
    for number in range(OTHERS):
        for means, attempt in (("mkdir", lambda: os.mkdir(f"dir-{number}")), ("link", lambda: os.link(own, f"link-{number}"))):
            try:
                attempt()
                won.append((means, number))
            except FileExistsError:
                pass
    return won


def scenario():
    winners = {}
    for pid, won in parallel([(claimant,)] * PROCESSES):
        for number in won:
            assert number not in winners, f"claim-{number} was won by {winners[number]} and by {pid}"
            winners[number] = pid
    assert len(winners) == ROUNDS, f"{ROUNDS - len(winners)} claims were won by nobody"
    for number, pid in winners.items():
        assert pid_in(f"claim-{number}") == f"{pid}\n"
    won = sum(parallel([(by_other_means, who) for who in range(20)]), [])
    assert len(won) == len(set(won)) == 2 * OTHERS, f"{len(won)} wins in {2 * OTHERS} rounds of mkdir and link"
    for number in range(SHELLS):
        shells = f"for i in $(seq 20); do (set -C; echo $BASHPID > shell-{number}) 2> /dev/null && echo won & done; wait"
        run = subprocess.run(["bash", "-c", shells], capture_output=True, text=True, timeout=60)
        assert run.stdout.count("won") == 1, f"`set -C; > file` was won {run.stdout.count('won')} times"
        assert int(pid_in(f"shell-{number}")) > 0
        # Without a byte inside, too.
        shells = f"for i in $(seq 20); do (set -C; > empty-{number}) 2> /dev/null && echo won & done; wait"
        run = subprocess.run(["bash", "-c", shells], capture_output=True, text=True, timeout=60)
        assert run.stdout.count("won") == 1, f"`set -C; > file` was won {run.stdout.count('won')} times without a byte"
    return f"{PROCESSES} processes, {ROUNDS} rounds, {ROUNDS} winners"


if __name__ == "__main__":
    main(scenario, limit=300)
