"""Three trackers work in one directory and know nothing of each other: one rewrites its document in place, one writes a temporary
file and renames it, one appends records. Each finds its own state again at every step, readers of all three see only whole
states, and no temporary name is left over. (C1, C2, C6, C10, C11)

A plain directory fails: the document that is rewritten in place is found empty or cut off.
"""
import json
import os
import tempfile

from _scenario import fork, load, main, padded, parallel, save, whole

STEPS = 200


def in_place(running):
    for step in range(1, STEPS + 1):
        assert whole(load("progress.json")) == step - 1
        save("progress.json", padded(step))
    finished(running)


def by_rename(running):
    for step in range(1, STEPS + 1):
        assert whole(load("checkpoint.json")) == step - 1
        with tempfile.NamedTemporaryFile("w", dir=".", prefix=".checkpoint-", delete=False) as f:
            json.dump(padded(step), f)
        os.replace(f.name, "checkpoint.json")
    finished(running)


def by_append(running):
    for step in range(1, STEPS + 1):
        assert len(records()) == step
        with open("history.jsonl", "a") as f:
            f.write(json.dumps({"n": step}) + "\n")
    finished(running)


def finished(running):
    with running.get_lock():
        running.value -= 1


def records():
    with open("history.jsonl") as f:
        found = [json.loads(line)["n"] for line in f]
    assert found == list(range(len(found))), "records are missing or out of order"
    return found


def observer(running):
    newest, rounds = [0, 0, 0], 0
    while running.value:
        state = [whole(load("progress.json")), whole(load("checkpoint.json")), records()[-1]]
        assert all(a >= b for a, b in zip(state, newest)), f"{newest} became {state}"
        newest, rounds = state, rounds + 1
    return rounds


def scenario():
    save("progress.json", padded(0))
    save("checkpoint.json", padded(0))
    with open("history.jsonl", "w") as f:
        f.write('{"n": 0}\n')
    running = fork.Value("i", 3)
    rounds = parallel([(in_place, running), (by_rename, running), (by_append, running), (observer, running), (observer, running)])[3:]
    assert [whole(load("progress.json")), whole(load("checkpoint.json")), records()[-1]] == [STEPS] * 3
    assert sorted(os.listdir()) == ["checkpoint.json", "history.jsonl", "progress.json"], os.listdir()
    return f"3 trackers, {STEPS} steps each; {sum(rounds)} looks at all three"


if __name__ == "__main__":
    main(scenario)
