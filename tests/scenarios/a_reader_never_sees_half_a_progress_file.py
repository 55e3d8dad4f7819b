"""A tracker rewrites progress.json in place while four programs poll it: every poll gives a whole document, and progress
never goes backwards. (C1, C2)

A plain directory fails: polls find the file empty or cut off.
"""
from _scenario import fork, load, main, padded, parallel, save, whole

SAVES = 500


def writer(saved, done):
    for number in range(1, SAVES + 1):
        save("progress.json", padded(number))
        saved.value = number
    done.set()


def reader(saved, done):
    newest, polls = 0, 0
    while not done.is_set():
        acknowledged = saved.value
        number = whole(load("progress.json"))
        assert number >= newest, f"progress went from {newest} back to {number}"
        assert number >= acknowledged, f"save {acknowledged} had returned before save {number} was read"
        newest, polls = number, polls + 1
    return polls


def scenario():
    save("progress.json", padded(0))
    saved, done = fork.Value("l", 0), fork.Event()
    polls = parallel([(writer, saved, done)] + [(reader, saved, done)] * 4)[1:]
    assert whole(load("progress.json")) == SAVES
    return f"{SAVES} saves, {sum(polls)} polls, all whole and none stale"


if __name__ == "__main__":
    main(scenario)
