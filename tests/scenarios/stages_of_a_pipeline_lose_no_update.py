"""The state of a pipeline in one JSON document: stages run in parallel, report progress, complete with artifacts or fail with an
error, and count the document's revisions, by patches (C15). What needs the whole state, the choice of the next stage, is a
compare and set: it reads version and document, decides, and tries again when somebody else was faster. Then seven processes
set seven fields, again and again.

A plain directory has no patches: the scenario says so and fails there.
"""
import errno
import json
import os

from _scenario import load, main, parallel, save

PATH = "pipeline.json"
STAGES, WORKERS, STEPS = 200, 5, 4
FIELDS, ROUNDS = 7, 100


def patch(*operations, version=None):
    name = "user.commitfs.json.patch" + ("" if version is None else f"@{version}")
    os.setxattr(PATH, name, json.dumps(operations).encode())


def add(path, value):
    return {"op": "add", "path": path, "value": value}


def count(path, by=1):
    return {"op": "increment", "path": path, "value": by}


def take_stage(worker):
    """The next stage that nobody has, or None. Two workers that choose the same one: one is told, and chooses again."""
    retries = 0
    while True:
        with open(PATH) as file:
            version = int(os.getxattr(file.fileno(), "user.commitfs.version"))
            state = json.load(file)
        waiting = [name for name, stage in state["stages"].items() if stage["status"] == "waiting"]
        if not waiting:
            return None, retries
        name = waiting[0]
        try:
            patch(add(f"/stages/{name}/status", "running"), add(f"/stages/{name}/by", worker), count("/revision"), version=version)
            return name, retries
        except OSError as e:
            if e.errno != errno.ESTALE:
                raise
            retries += 1


def run_stages(worker):
    done = retries = 0
    while True:
        name, again = take_stage(worker)
        retries += again
        if name is None:
            return done, retries
        for _ in range(STEPS):
            patch(count(f"/stages/{name}/progress"), count("/revision"))
        number = int(name.removeprefix("stage-"))
        if number % 10 == 3:
            patch(add(f"/stages/{name}/status", "failed"), add("/errors/-", f"{name} has no input"), count("/revision"))
        else:
            patch(add(f"/stages/{name}/status", "done"), add("/artifacts/-", {"of": name, "file": f"{name}.pt"}), count("/revision"))
        done += 1


def set_field(field):
    for value in range(1, ROUNDS + 1):
        patch(add(f"/fields/{field}", value), count("/revision"))


def scenario():
    stages = {f"stage-{n}": {"status": "waiting", "progress": 0} for n in range(STAGES)}
    save(PATH, {"revision": 0, "stages": stages, "artifacts": [], "errors": [], "fields": {}})
    try:
        os.getxattr(PATH, "user.commitfs.version")
    except OSError as e:
        raise AssertionError("there are no patches here") from e
    worked = parallel([(run_stages, worker) for worker in range(WORKERS)])
    state = load(PATH)
    assert sum(done for done, _ in worked) == STAGES, worked
    for name, stage in state["stages"].items():
        assert stage["progress"] == STEPS, (name, stage)
        assert stage["status"] in ("done", "failed"), (name, stage)
    made = sorted(artifact["of"] for artifact in state["artifacts"])
    failed = sorted(error.split()[0] for error in state["errors"])
    assert len(made) + len(failed) == STAGES and len(set(made + failed)) == STAGES, (len(made), len(failed))
    assert state["revision"] == STAGES * (STEPS + 2), state["revision"]

    parallel([(set_field, field) for field in range(FIELDS)])
    state = load(PATH)
    assert state["fields"] == {str(field): ROUNDS for field in range(FIELDS)}, state["fields"]
    assert state["revision"] == STAGES * (STEPS + 2) + FIELDS * ROUNDS, state["revision"]
    return f"{STAGES} stages, {state['revision']} revisions, {sum(retries for _, retries in worked)} retries"


if __name__ == "__main__":
    main(scenario)
