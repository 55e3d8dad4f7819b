"""Ten processes are told --force at the same time: each computes the result again and rewrites result.bin and its manifest in
place, although others do the same. Whoever reads afterwards, or in between, finds a whole result. (C1, C2)

A plain directory fails: results mix, or are found empty.
"""
import hashlib
import json
import os

from _scenario import main, parallel

PROCESSES, ROUNDS = 10, 20


def compute(seed):
    block = hashlib.sha256(seed.encode()).digest()
    return seed.encode().ljust(64) + block * 4096


def check():
    with open("result.bin", "rb") as f:
        data = f.read()
    seed = data[:64].decode().strip()
    assert seed and data == compute(seed), f"a damaged result of {len(data)} bytes, begun by {seed or 'nobody'}"
    with open("manifest.json") as f:
        manifest = json.load(f)
    assert manifest["sha256"] == hashlib.sha256(compute(manifest["seed"])).hexdigest()


def process(index):
    for number in range(ROUNDS):
        seed = f"{index}-{number}"
        data = compute(seed)
        with open("result.bin", "wb") as f:
            for start in range(0, len(data), 16384):
                f.write(data[start:start + 16384])
                f.flush()
        with open("manifest.json", "w") as f:
            json.dump({"seed": seed, "sha256": hashlib.sha256(data).hexdigest(), "host": os.uname().nodename}, f)
        check()


def scenario():
    parallel([(process, i) for i in range(PROCESSES)])
    check()
    return f"{PROCESSES} processes recomputed {ROUNDS} times each; every result that was read was whole"


if __name__ == "__main__":
    main(scenario)
