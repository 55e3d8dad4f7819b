"""Ten processes add to one progress.json twenty times each, under a lock: 200 of 200 are there. Once with a lock file beside it,
once with the lock on the document itself; both with flock and with lockf. (C2, C9, C12, C14)

Holds on a plain directory too.
"""
import fcntl
import json

from _scenario import load, main, parallel, save

PROCESSES, ROUNDS = 10, 20
KINDS = {"flock": (fcntl.flock, fcntl.LOCK_EX), "lockf": (fcntl.lockf, fcntl.LOCK_EX)}


def beside(path, kind, who):
    lock, exclusive = KINDS[kind]
    for step in range(ROUNDS):
        with open(path + ".lock", "w") as guard:
            lock(guard, exclusive)
            state = load(path)
            state["count"] += 1
            state["done"].append([who, step])
            save(path, state)


def on_the_document(path, kind, who):
    lock, exclusive = KINDS[kind]
    for step in range(ROUNDS):
        with open(path, "r+") as f:
            lock(f, exclusive)
            state = json.load(f)
            state["count"] += 1
            state["done"].append([who, step])
            f.seek(0)
            json.dump(state, f)
            f.truncate()
            f.flush()
            lock(f, fcntl.LOCK_UN)


def scenario():
    for way in (beside, on_the_document):
        for kind in KINDS:
            path = f"progress-{way.__name__}-{kind}.json"
            save(path, {"count": 0, "done": []})
            parallel([(way, path, kind, who) for who in range(PROCESSES)])
            state = load(path)
            assert state["count"] == PROCESSES * ROUNDS, f"{way.__name__}, {kind}: {state['count']} of {PROCESSES * ROUNDS}"
            assert sorted(state["done"]) == [[who, step] for who in range(PROCESSES) for step in range(ROUNDS)]
    return f"{PROCESSES * ROUNDS} of {PROCESSES * ROUNDS}, with a lock file and on the document, flock and lockf"


if __name__ == "__main__":
    main(scenario)
