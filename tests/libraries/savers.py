"""What real libraries save of one step, and how a reader tells a whole save from half of one.

Each class saves as its library does, unmodified, into a directory of the state directory; `step` is inside everything that is
saved. `found` reads what there is, by the library's own loader where it has one for the purpose, and raises Mixed where files
of different saves, or half a save, are found.
"""
import glob
import json
import os
import random
import shutil


class Mixed(Exception):
    """What a reader finds doesn't belong together."""


def one(steps, what):
    if len(set(steps)) != 1:
        raise Mixed(f"{what}: steps {steps}")
    return steps[0]


class Files:
    """Three files that are saved one after the other; `steps` reads them, and gives the step of each."""

    def found(self, top):
        steps = []
        try:
            for step in self.steps(top):
                steps.append(step)
        except FileNotFoundError:
            if steps:
                raise Mixed(f"only {len(steps)} of 3 files are there")
            return None
        return one(steps, "files")


class KerasPair(Files):
    """`model.save_weights`, then `json.dump`: three files of a name."""
    modules = ("keras", "torch", "h5py")
    rules = """
[[group]]
files = ["models/{s}.weights.h5", "models/{s}_metrics.json", "models/{s}_metadata.json"]
readers = "pin"
"""

    def prepare(self):
        os.environ["KERAS_BACKEND"] = "torch"
        import keras
        self.model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])

    def begin(self, top):
        os.makedirs(f"{top}/models", exist_ok=True)

    def save(self, top, step):
        import numpy
        self.model.set_weights([numpy.full(w.shape, step, dtype="float32") for w in self.model.get_weights()])
        self.model.save_weights(f"{top}/models/AAPL.weights.h5")
        for kind in ("metrics", "metadata"):
            with open(f"{top}/models/AAPL_{kind}.json", "w") as f:
                json.dump({"step": step}, f)

    def steps(self, top):
        import h5py
        with h5py.File(f"{top}/models/AAPL.weights.h5", "r", locking=False) as f:  # else the saver's own lock may fail, as ever
            values = []
            f.visititems(lambda _, x: values.append(x[()].flat[0]) if isinstance(x, h5py.Dataset) else None)
            yield int(one(values, "weights"))
        for kind in ("metrics", "metadata"):
            with open(f"{top}/models/AAPL_{kind}.json") as f:
                yield json.load(f)["step"]


class SymbolFiles(Files):
    """A directory for each symbol, with three files that are written one after the other by numpy and json."""
    modules = ("numpy",)
    rules = """
[[group]]
files = ["data/{symbol}/prices.npy", "data/{symbol}/features.npz", "data/{symbol}/meta.json"]
readers = "pin"
"""

    def prepare(self):
        __import__("numpy")

    def begin(self, top):
        os.makedirs(f"{top}/data/MSFT", exist_ok=True)

    def save(self, top, step):
        import numpy
        numpy.save(f"{top}/data/MSFT/prices.npy", numpy.full(20000, step))
        numpy.savez(f"{top}/data/MSFT/features.npz", a=numpy.full(2000, step))
        with open(f"{top}/data/MSFT/meta.json", "w") as f:
            json.dump({"step": step}, f)

    def steps(self, top):
        import numpy
        yield int(numpy.load(f"{top}/data/MSFT/prices.npy")[-1])
        with numpy.load(f"{top}/data/MSFT/features.npz") as f:
            yield int(f["a"][-1])
        with open(f"{top}/data/MSFT/meta.json") as f:
            yield json.load(f)["step"]


class Directories:
    """Checkpoints as directories that are listed once they are whole: `pattern` finds them, `whole` names what has to be in one."""
    kept = 2

    def begin(self, top):
        os.makedirs(f"{top}/run", exist_ok=True)

    def found(self, top, half_counts=True):
        latest = None
        try:
            names = os.listdir(f"{top}/run")
        except FileNotFoundError:
            return None
        for name in names:
            if not glob.fnmatch.fnmatch(name, self.pattern):
                continue
            there = set()
            for where, _, files in os.walk(f"{top}/run/{name}"):
                there |= {os.path.relpath(f"{where}/{f}", f"{top}/run/{name}") for f in files}
            missing = [w for w in self.whole if not any(glob.fnmatch.fnmatch(t, w) for t in there)]
            if half_counts and missing and name in os.listdir(f"{top}/run"):
                raise Mixed(f"{name} is listed without {missing}")
            if not missing:
                latest = max(latest or 0, int("".join(c for c in name if c.isdigit())))
        return latest


class Transformers(Directories):
    """`Trainer._save_checkpoint` of a tiny model, with its rotation of old checkpoints."""
    modules = ("transformers", "accelerate", "torch")
    pattern = "checkpoint-*"
    whole = ("config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json",
             "training_args.bin")
    rules = """
[[group]]
directory = "**/checkpoint-*"
complete = ["trainer_state.json"]
"""

    def prepare(self):
        os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", WANDB_DISABLED="true", TOKENIZERS_PARALLELISM="false")
        import torch
        import transformers
        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        self.transformers, self.torch = transformers, torch
        config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=16)
        self.model = transformers.GPT2LMHeadModel(config)

    def save(self, top, step):
        ids = self.torch.zeros(4, dtype=self.torch.long)
        data = [{"input_ids": ids, "labels": ids}] * 2
        arguments = self.transformers.TrainingArguments(
            output_dir=f"{top}/run", max_steps=step, save_steps=1, save_strategy="steps", save_total_limit=self.kept, report_to=[],
            disable_tqdm=True, use_cpu=True, logging_strategy="no", per_device_train_batch_size=1, dataloader_pin_memory=False)
        trainer = self.transformers.Trainer(model=self.model, args=arguments, train_dataset=data)
        last = self.transformers.trainer_utils.get_last_checkpoint(f"{top}/run")
        trainer.train(resume_from_checkpoint=last)


class DistributedCheckpoint(Directories):
    """`torch.distributed.checkpoint.save`, as Lightning's sharded strategies call it, and `meta.pt` beside it."""
    modules = ("torch",)
    pattern = "*.ckpt"
    whole = (".metadata", "__0_0.distcp", "meta.pt")
    rules = """
[[group]]
directory = "**/*.ckpt"
complete = [".metadata", "meta.pt"]
"""

    def prepare(self):
        import torch
        import torch.distributed.checkpoint
        torch.set_num_threads(1)
        self.torch = torch

    def save(self, top, step):
        import torch
        from torch.distributed import checkpoint
        path = f"{top}/run/step={step}.ckpt"
        os.makedirs(path, exist_ok=True)
        checkpoint.save({"w": torch.full((64, 64), float(step))}, storage_writer=checkpoint.FileSystemWriter(path), no_dist=True)
        torch.save({"step": step}, f"{path}/meta.pt")
        for old in sorted(glob.glob(f"{top}/run/*.ckpt"), key=lambda p: int(p.split("=")[-1][:-5]))[:-self.kept]:
            shutil.rmtree(old)


class RayTune(Directories):
    """A checkpoint that a trial of Ray Tune reports: copied into the trial's directory by the storage context."""
    modules = ("ray",)
    pattern = "checkpoint_*"
    whole = ("a.bin", "b.json", "c/d.bin")
    rules = """
[[group]]
directory = "**/checkpoint_*"
settle = "1s"
"""

    def prepare(self):
        from ray.train._internal.storage import StorageContext
        self.context = StorageContext

    def save(self, top, step):
        import tempfile
        from ray.train import Checkpoint
        with tempfile.TemporaryDirectory() as made:
            os.makedirs(f"{made}/c")
            for name in ("a.bin", "c/d.bin"):
                with open(f"{made}/{name}", "wb") as f:
                    f.write(random.randbytes(200_000))
            with open(f"{made}/b.json", "w") as f:
                json.dump({"step": step}, f)
            context = self.context(storage_path=f"{top}", experiment_dir_name="run", trial_dir_name=".")
            context.current_checkpoint_index = step
            context.persist_current_checkpoint(Checkpoint.from_directory(made))


class Datasets:
    """`Dataset.map` with a cache file, which the library writes under a temporary name and renames: no rule."""
    modules = ("datasets",)
    reads_itself = True
    rules = ""

    def prepare(self):
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
        import datasets
        datasets.disable_progress_bars()
        self.datasets = datasets

    def begin(self, top):
        os.makedirs(f"{top}/cache", exist_ok=True)

    def save(self, top, step):
        made = self.datasets.Dataset.from_dict({"x": list(range(2000))})
        made.map(lambda row: {"y": step}, cache_file_name=f"{top}/cache/mapped.arrow", load_from_cache_file=False)

    def found(self, top):
        try:
            read = self.datasets.Dataset.from_file(f"{top}/cache/mapped.arrow")
        except FileNotFoundError:
            return None
        if len(read) != 2000:
            raise Mixed(f"{len(read)} rows of 2000")
        return one([read[0]["y"], read[1999]["y"]], "rows")


class DatasetsToDisk(Directories):
    """`Dataset.save_to_disk`: a directory that is written in place, its `state.json` last."""
    modules = ("datasets",)
    pattern = "data-*"
    whole = ("data-*.arrow", "dataset_info.json", "state.json")
    rules = """
[[group]]
directory = "**/data-*"
complete = ["state.json", "dataset_info.json"]
"""
    prepare = Datasets.prepare

    def save(self, top, step):
        self.datasets.Dataset.from_dict({"x": [step] * 2000}).save_to_disk(f"{top}/run/data-{step}", num_shards=2)


class Orbax(Directories):
    """`CheckpointManager.save`, which writes a directory under a temporary name and renames it: no rule."""
    modules = ("orbax", "jax")
    forks = False  # jax has threads from its import on
    pattern = "[0-9]*"
    whole = ("_CHECKPOINT_METADATA", "default/*")
    rules = ""

    def prepare(self):
        os.environ["JAX_PLATFORMS"] = "cpu"
        import orbax.checkpoint
        self.orbax = orbax.checkpoint

    def found(self, top, half_counts=True):
        try:
            names = [n for n in os.listdir(f"{top}/run") if n.isdigit()]
        except FileNotFoundError:
            return None
        newest = max(names, key=int, default=None)
        if newest is None:
            return None
        there = os.listdir(f"{top}/run/{newest}")
        # Old ones are removed file by file, which only a rule would make one step.
        if half_counts and "_CHECKPOINT_METADATA" not in there:
            raise Mixed(f"{newest} is listed with {there}")
        return int(newest)

    def save(self, top, step):
        import numpy
        options = self.orbax.CheckpointManagerOptions(max_to_keep=self.kept, enable_async_checkpointing=False)
        with self.orbax.CheckpointManager(os.path.abspath(f"{top}/run"), options=options) as manager:
            manager.save(step, args=self.orbax.args.StandardSave({"w": numpy.full(10000, step)}))
            manager.wait_until_finished()


ALL = {c.__name__: c for c in
       (KerasPair, SymbolFiles, Transformers, DistributedCheckpoint, RayTune, Datasets, DatasetsToDisk, Orbax)}
