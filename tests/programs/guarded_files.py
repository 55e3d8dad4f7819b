"""What libraries write under guarded names passes its guard, and a tree with templates is copied whole."""
import gzip
import json
import os
import pickle
import time

from harness import program, read, sh, write


@program(modules=["numpy", "h5py"], opaque=["*.h5", "*.npz"])
def arrays_of_every_type_pass_their_guards():
    import h5py
    import numpy as np
    arrays = [
        np.arange(12.0).reshape(3, 4), np.zeros((0, 3)), np.array(5), np.asfortranarray(np.ones((4, 5), "i2")), np.array([True, False]),
        np.array(["a", "longer"]), np.array([b"x", b"yz"]), np.array([1 + 2j]), np.array(["2020-01-01", "NaT"], "M8[ns]"), np.arange(3, dtype=">u4"),
        np.array([(1, 2.0, [[1, 2]]), (3, 4.0, [[5, 6]])], [("a", "i4"), ("b", "f8"), ("c", "u1", (1, 2))]),
        np.zeros(2, np.dtype([("x", "i1"), ("y", "f8")], align=True)), np.array([{"an": "object"}, None], object), np.zeros(3, [("n", [("x", "u1")])]),
    ]
    for i, array in enumerate(arrays):
        for _ in range(2):  # a new file, and over one
            np.save(f"{i}.npy", array)
        loaded = np.load(f"{i}.npy", allow_pickle=True)
        assert loaded.shape == array.shape and (array.dtype.hasobject or loaded.tobytes() == array.tobytes())
    with open("several.npy", "wb") as f:
        for array in arrays[:5]:
            np.save(f, array)
    with open("several.npy", "rb") as f:
        assert [np.load(f).tolist() for _ in range(5)] == [a.tolist() for a in arrays[:5]]
    mapped = np.lib.format.open_memmap("mapped.npy", mode="w+", dtype="f8", shape=(100, 10))
    mapped[:] = 7
    del mapped
    mapped = np.load("mapped.npy", mmap_mode="r+")
    mapped[3] = 8
    del mapped
    assert np.load("mapped.npy").sum() == 7010
    np.savez("all.npz", *arrays[:5])
    for mode in ("w", "a", "r+", "w"):
        with h5py.File("w.h5", mode) as f:
            f.require_dataset("d", (100, 100), "f8")[:] = 1
    with h5py.File("latest.h5", "w", libver="latest", userblock_size=512) as f:
        f["d"] = np.ones(1000)
    for name in ("w.h5", "latest.h5"):
        with h5py.File(name) as f:
            assert f["d"][:].min() == 1


@program(modules=["pandas", "pyarrow", "zstandard"], opaque=["*.parquet", "*.gz", "*.zst", "small.pkl"])
def tables_pass_their_guards_in_every_format():
    import pandas
    import zstandard
    table = pandas.DataFrame({"a": range(5000), "b": [f"row {i}" for i in range(5000)]})
    for _ in range(2):
        for compression in ("snappy", "zstd", None):
            table.to_parquet(f"t-{compression}.parquet", compression=compression)
        table.to_csv("t.csv", index=False)
        table.to_csv("t.csv.gz", index=False)
        table.to_csv("t.csv.zst", index=False)
        table.to_json("t.json")
        table.to_json("lines.json", orient="records", lines=True)
        table.to_pickle("t.pkl")
        table.to_pickle("small.pkl", compression="gzip")
    for compression in ("snappy", "zstd", None):
        assert pandas.read_parquet(f"t-{compression}.parquet").equals(table)
    for name in ("t.csv", "t.csv.gz", "t.csv.zst"):
        assert pandas.read_csv(name).equals(table)
    assert pandas.read_json("lines.json", lines=True).equals(table)
    assert pandas.read_pickle("t.pkl").equals(pandas.read_pickle("small.pkl", compression="gzip"))
    with open("streamed.zst", "wb") as f:
        with zstandard.ZstdCompressor(write_checksum=True).stream_writer(f, closefd=False) as z:
            for i in range(300):
                z.write(os.urandom(1000) + bytes(9000))
    assert len(zstandard.ZstdDecompressor().stream_reader(open("streamed.zst", "rb"), read_across_frames=True).read()) == 3_000_000


@program(opaque=["*.gz"])
def compressed_files_and_pickles_pass_their_guards():
    data = os.urandom(100_000) + bytes(500_000) + b"text " * 100_000
    for level in (1, 6, 9):
        with gzip.open(f"{level}.gz", "wb", level) as f:
            f.write(data)
        with gzip.open(f"{level}.gz", "ab") as f:  # a second member
            f.write(b"more")
        assert gzip.open(f"{level}.gz").read() == data + b"more"
    sh("echo none | gzip -n > a.gz; : | gzip > empty.gz; cat a.gz empty.gz a.gz > three.gz; gzip -t three.gz; gzip -dc three.gz > three")
    sh("seq 9999 > numbers; gzip numbers; gzip -d numbers.gz; gzip -k numbers")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for value in (None, 5, b"." * 70_000, list(range(100_000)), {"text": "ä" * 300_000}):
            with open(f"{protocol}.pickle", "wb") as f:
                pickle.dump(value, f, protocol)
            assert pickle.loads(read(f"{protocol}.pickle", "rb")) == value


@program()
def a_status_file_is_kept_open_and_rewritten():
    with open("status.json", "w") as f:  # read by others at the close, or by rule as it goes
        for step in range(3):
            f.seek(0)
            f.truncate()
            json.dump({"step": step, "left": "x" * 20_000 * (2 - step)}, f)
            f.flush()
            time.sleep(0.9)
            assert json.loads(read("status.json"))["step"] == step  # its own view
    with open("status.json", "r+") as f:
        state = json.load(f)
        for state["step"] in (10, 11):
            f.seek(0)
            json.dump(state, f)
            f.truncate()
            f.flush()
            time.sleep(0.9)
    assert json.loads(read("status.json")) == {"step": 11, "left": ""}


TEMPLATES = {
    "package.json": "{{ cookiecutter.package }}", "conf/a.json": '{"port": ${PORT}}', "conf/b.json": '{"a": <%= x %>, "b": [', "five.json": "{key: 'value',}",
    "words.json": "not JSON", "comment.json": "// nothing\n", "none.json": "", "whole.json": '{"a": 1}', "trailing.json": "[1]]", "nul.json": '["\0"]',
    "note.ipynb": "{% raw %}", "fake.npy": "text", "fake.h5": "text", "fake.gz": "text", "fake.pkl": "text", "fake.parquet": "text", "fake.zst": "text",
}


@program(needs=["git", "tar", "rsync"], opaque=["*/.git/index", "*/.git/logs/*", "*.tar"], unlisted=["*/.git/hooks/*"])
def a_tree_with_templates_and_fixtures_is_cloned_and_copied_whole():
    for path, text in TEMPLATES.items():
        os.makedirs(os.path.dirname(f"src/{path}") or ".", exist_ok=True)
        write(f"src/{path}", text)
    sh(r"""
    cd src; git init -q -b main; git add -A; git commit -qm one; cd ..
    git clone -q src cloned; cp -r src copied; cp -a src/. copied; rsync -a src/ synced; rsync -a --inplace src/ synced
    tar cf t.tar src; mkdir out; tar xf t.tar -C out; tar xf t.tar -C out
    for tree in cloned copied synced out/src; do diff -r -x .git src $tree; test -z "$(git -C $tree status --short)"; done
    cd cloned; git checkout -q -b other; for f in *.json; do echo '{"now": "JSON"}' > $f; done; git commit -qam two
    git checkout -q main; git checkout -q other; git checkout -q main; git stash list; diff -r -x .git . ../src
    """)
