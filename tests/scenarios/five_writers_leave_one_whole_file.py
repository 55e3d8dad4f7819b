"""Five programs rewrite the same progress.json in place, without a lock. The last close wins, but every read, by anyone at any
time, is one writer's whole document; and once a save returned, its writer never reads an older one of its own. (C1, C2, C9)

A plain directory fails: the documents mix.
"""
from _scenario import load, main, padded, parallel, save, whole

WRITERS, SAVES = 5, 100


def writer(index):
    others = 0
    for step in range(SAVES):
        save("progress.json", padded(index * 10_000 + step, 200 + index))  # of different lengths
        who, number = divmod(whole(load("progress.json")), 10_000)
        assert who != index or number == step, f"writer {index} saved {step} and then read its own {number}"
        others += who != index
    return others


def scenario():
    save("progress.json", padded(0, 200))
    others = parallel([(writer, i) for i in range(WRITERS)])
    who, number = divmod(whole(load("progress.json")), 10_000)
    assert number == SAVES - 1, f"the file holds save {number} of writer {who}, which made later ones"
    return f"{WRITERS * SAVES} saves by {WRITERS} writers, the last one by writer {who}; {sum(others)} saves were followed by another's at once"


if __name__ == "__main__":
    main(scenario)
