"""Eight programs write twenty documents, in place and by rename, small and large, indented and not, some of them shared, as fast
as they can; four programs list the directory and parse what they find. Every document that is listed can be opened, and every
document that is opened parses. (C1, C2, C6)

A plain directory fails: documents are found empty or cut off.
"""
import json
import os
import random

from _scenario import fork, load, main, padded, parallel, save, whole

WRITERS, SAVES = 8, 120


def writer(who, running):
    rng = random.Random(who)
    for step in range(SAVES):
        name = f"shared-{rng.randrange(4)}.json" if rng.random() < 0.5 else f"own-{who}-{rng.randrange(2)}.json"
        state = padded(who * 1000 + step, rng.choice([1, 50, 3000]))
        if rng.random() < 0.3:
            with open(f".{name}.{who}.tmp", "w") as f:
                json.dump(state, f, indent=1)
            os.replace(f".{name}.{who}.tmp", name)
        else:
            save(name, state)
        if name.startswith("own"):
            assert load(name) == state, f"{name} is not what was saved last"
    with running.get_lock():
        running.value -= 1


def reader(running):
    parsed = 0
    while running.value:
        for name in sorted(os.listdir()):
            if name.endswith(".json"):
                try:
                    whole(load(name))
                except json.JSONDecodeError as e:
                    raise AssertionError(f"{name} does not parse: {e}") from None
                parsed += 1
    return parsed


def scenario():
    running = fork.Value("i", WRITERS)
    parsed = parallel([(writer, who, running) for who in range(WRITERS)] + [(reader, running)] * 4)[WRITERS:]
    names = os.listdir()
    for name in names:
        whole(load(name))
    assert all(name.endswith(".json") for name in names), f"left over: {names}"
    return f"{WRITERS * SAVES} saves, {sum(parsed)} documents parsed, {len(names)} at the end, all valid"


if __name__ == "__main__":
    main(scenario)
