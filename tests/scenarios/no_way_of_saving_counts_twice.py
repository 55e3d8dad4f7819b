"""A progress tracker that nobody has changed for anything: load, add one, save, without a lock. By 20 threads, by 20 processes, by 20
coroutines on one thread, by processes that read once and save often, and by pools that load and save in different threads; in
place and by os.replace. (C17) A plain directory loses updates here; whatever keeps them must not count one twice, and the file
is whole at every moment.

On commitfs with the rule on_conflict = "merge" and counters = ["/n"] for *.json, threads and processes lose none.
"""
import asyncio
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

from _scenario import load, main, parallel, save

WORKERS, ROUNDS = 20, 10


def replace(path, state):
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}"
    save(temporary, state)
    os.replace(temporary, path)


def increment(path, write):
    for _ in range(ROUNDS):
        state = load_whole(path)
        state["n"] += 1
        write(path, state)


def load_whole(path):
    # In place, a plain directory shows the file empty or half.
    while True:
        try:
            return load(path)
        except ValueError:
            pass


def threads(path, write):
    started = [threading.Thread(target=increment, args=(path, write)) for _ in range(WORKERS)]
    for t in started:
        t.start()
    for t in started:
        t.join()


def processes(path, write):
    parallel([(increment, path, write)] * WORKERS)


def often(path, write):
    state = load_whole(path)
    for _ in range(ROUNDS):
        state["n"] += 1
        write(path, state)


def read_once(path, write):
    parallel([(often, path, write)] * WORKERS)


def coroutines(path, write):
    async def one():
        for _ in range(ROUNDS):
            state = load_whole(path)
            await asyncio.sleep(random.random() / 500)
            state["n"] += 1
            write(path, state)

    async def all_of_them():
        await asyncio.gather(*[one() for _ in range(WORKERS)])

    asyncio.run(all_of_them())


def pools(path, write):
    async def one(loads, saves):
        loop = asyncio.get_running_loop()
        for _ in range(ROUNDS):
            state = await loop.run_in_executor(loads, load_whole, path)
            state["n"] += 1
            await loop.run_in_executor(saves, write, path, state)

    async def all_of_them():
        with ThreadPoolExecutor(4) as loads, ThreadPoolExecutor(4) as saves:
            await asyncio.gather(*[one(loads, saves) for _ in range(WORKERS)])

    asyncio.run(all_of_them())


def scenario():
    counts = []
    for way in (threads, processes, read_once, coroutines, pools):
        for write in (save, replace):
            path = f"{way.__name__}-{write.__name__}.json"
            save(path, {"n": 0})
            way(path, write)
            n = load(path)["n"]
            assert 0 < n <= WORKERS * ROUNDS, f"{way.__name__}, {write.__name__}: {n} of {WORKERS * ROUNDS}"
            counts.append(f"{way.__name__} {n}")
    return f"of {WORKERS * ROUNDS}: {', '.join(counts)}"


if __name__ == "__main__":
    main(scenario)
