"Training that was killed goes on bit for bit, whenever it was killed."

import errno
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import minima as mi
from minima import nn, optim, serialization
from minima.data import DataLoader, TensorDataset
from minima.random import Generator
from minima.trainer import Trainer
from minima.trainer.checkpoints import in_folder, load_tree, newest, save_tree

ROOT = Path(__file__).resolve().parent.parent


class Memory:
    "A callback and an algorithm that remember what they saw."

    def __init__(self):
        self.total, self.array = 0.0, np.zeros(2)

    def batch_end(self, state):
        self.total += state.loss
        self.array += state.loss

    def match(self, event, state):
        return event == "batch_end"

    def apply(self, event, state):
        self.batch_end(state)

    def state_dict(self):
        return {"total": self.total, "array": self.array}

    def load_state_dict(self, state):
        self.total, self.array = state["total"], state["array"].numpy()


class Watcher:
    "A callback that remembers."

    __init__, batch_end = Memory.__init__, Memory.batch_end
    state_dict, load_state_dict = Memory.state_dict, Memory.load_state_dict


class Average:
    "A callback that keeps a moving average of everything in the model, in arrays."

    mean = None

    def batch_end(self, state):
        now = {path: t.numpy().copy() for path, t in state.model.state_dict().items()}
        old = self.mean or now
        self.mean = {path: np.asarray(0.9 * old[path] + 0.1 * a) for path, a in now.items()}

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = {path: t.numpy() for path, t in state["mean"].items()}


OPTIMIZERS = {
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "two": lambda p: [optim.AdamW(p[:2]), optim.RMSProp(p[2:], lr=0.01, momentum=0.5)],
}
SCHEDULES = {
    "adam": lambda o: optim.OneCycleLR(o, 0.1, total_steps=48),
    "momentum": lambda o: optim.SequentialLR(
        o, [optim.LinearLR(o), optim.MultiStepLR(o, [2, 3])], [1]
    ),
    "two": optim.ReduceLROnPlateau,
}
LOADERS = {
    "adam": lambda: {"shuffle": True},  # drawn from the default generator
    "momentum": lambda: {"shuffle": True, "generator": Generator(7), "prefetch": 2},
    "two": dict,
}


def make(folder, seed, kind="adam", **settings):
    "A training of four epochs with six batches each, in which everything has a memory."
    mi.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    x = np.random.default_rng(0).normal(size=(46, 4)).astype("float32")
    data = TensorDataset(x, (x.sum(axis=1) > 0).astype("int64"))
    own = Generator(seed)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(),
        nn.Linear(8, 2), nn.Dropout(0.1, generator=own),
    )  # fmt: skip
    settings = {"max_duration": 4, "save_interval": "1ba", "autoresume": True} | settings
    return Trainer(
        model, DataLoader(data, 8, **LOADERS[kind]()), DataLoader(data, 16),
        optimizers=OPTIMIZERS[kind](model.parameters()), schedulers=SCHEDULES[kind],
        algorithms=Memory(), callbacks=[Average(), Watcher(), Watcher()], eval_interval="5ba",
        progress_bar=False, lint=False, save_folder=folder, **settings,
    )  # fmt: skip


def essence(tree):
    "`tree` with bytes for arrays, and without the time that it took."
    if isinstance(tree, dict):
        return {key: essence(value) for key, value in tree.items() if key != "seconds"}
    if isinstance(tree, list | tuple):
        return [essence(value) for value in tree]
    return (tree.shape, tree.numpy().tobytes()) if hasattr(tree, "numpy") else tree


def last(folder):
    "What the newest checkpoint says."
    return essence(newest(folder)[1])


# ---- killed ----


class HalfWritten:
    "A file whose `n`th write, counted over all files, ends in the middle, with `die`."

    count = 0

    def __init__(self, file, n, die):
        self.file, self.n, self.die = file, n, die

    def write(self, data):
        HalfWritten.count += 1
        if HalfWritten.count == self.n:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            self.die()
        self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def at_write(n, die):
    "Let `die` happen in the middle of the `n`th write to a checkpoint."
    original = serialization._replacing

    @contextmanager
    def replacing(path):
        with original(path) as file:
            yield HalfWritten(file, n, die)

    serialization._replacing, HalfWritten.count = replacing, 0


def at_call(n, die):
    "Let `die` happen when the `n`th function from now on is called, be it Python's or C's."
    calls = count(1)

    def hook(frame, event, argument):
        if event.endswith("call") and next(calls) == n:
            sys.setprofile(None)
            die()

    sys.setprofile(hook)
    return calls


def in_a_process_of_its_own(function, *arguments):
    "What `function` of this file returns (as JSON has it), called in a new Python."
    program = (
        f"import sys, json; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]}\n"
        "import test_trainer_resume as t\n"
        f"print(json.dumps(t.{function.__name__}(*{arguments!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def die_again_and_again(folder, kind, times, seed):
    """Train in `folder`, in processes that are killed `times` times, in the middle of a step, an
    evaluation, a write; then to the end. Returns how each came, how it went, and what it left."""
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    make(None, 0, kind, autoresume=False).fit("2ba")  # kernels are imported at their first use
    first = make(None, 0, kind, autoresume=False)  # how much there is to do for a batch?
    calls = at_call(0, kill)
    first.fit("6ba")
    sys.setprofile(None)
    per_batch, writes = next(calls) // 6, 1 + len(first.state.model.state_dict())
    chance, story = random.Random(seed), []
    for life in range(times + 1):
        way = at_write if life % 3 == 1 else at_call
        n = chance.randrange(1, 3 * writes if way is at_write else 3 * per_batch)
        pid = os.fork()
        if pid == 0:
            seed = life if in_folder(folder) else 0  # from a checkpoint on, it does not matter
            trainer = make(folder, seed, kind, max_duration=8)
            if life < times:
                way(n, kill)
            trainer.fit()
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        left = len([*Path(folder).glob(".*.part")])
        story.append([way.__name__, n, os.WIFSIGNALED(status) and os.WTERMSIG(status), left])
    return story


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes to fork on this system")
@pytest.mark.parametrize("kind", ["adam", "momentum"])
def test_killed_at_twenty_moments(kind, tmp_path):
    make(tmp_path / "straight", 0, kind, max_duration=8).fit()
    story = in_a_process_of_its_own(die_again_and_again, str(tmp_path / "killed"), kind, 20, 1)
    assert [signal for *_, signal, _ in story] == [9] * 20 + [0]
    assert all(left for way, *_, left in story[:-1] if way == "at_write")
    assert [*(tmp_path / "killed").glob(".*")] == []  # what the dead left, the next one removes
    assert last(tmp_path / "killed") == last(tmp_path / "straight")
    assert all(load_tree(path) for path in in_folder(tmp_path / "killed"))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("batches", [2, 5, 6, 7, 23])
def test_from_every_place_in_an_epoch(kind, batches, tmp_path):
    straight = make(tmp_path / "straight", 0, kind, autoresume=False)
    straight.fit()
    make(tmp_path / "cut", 0, kind, max_duration="4ep").fit(f"{batches}ba")
    for path in in_folder(tmp_path / "cut"):  # the one that fit leaves has a row of its own
        if not path.stem.endswith(f"-ba{batches - 1}"):
            path.unlink()
    resumed = make(tmp_path / "cut", 9, kind)
    assert resumed.state.timestamp.batch == batches - 1
    resumed.fit()
    assert last(tmp_path / "cut") == last(tmp_path / "straight")
    assert resumed.history == straight.history


def test_the_comparison_would_notice(tmp_path):
    for seed in (0, 1):
        make(tmp_path / str(seed), seed).fit()
    one, other = (last(tmp_path / str(seed)) for seed in (0, 1))
    differing = {key for key in one if one[key] != other[key]}
    assert differing >= {"model", "optimizers", "callbacks", "algorithms", "history", "generators"}


# ---- files ----


def test_a_full_disk_leaves_what_was_saved_before(tmp_path, monkeypatch):
    trainer = make(tmp_path, 0)
    trainer.fit("2ba")
    names = {path.name for path in tmp_path.iterdir()}

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            trainer.fit("2ba")
    assert caught.value.__notes__ == [
        "This was the checkpoint of epoch 1, batch 4; what was saved before is whole.",
        "This was in epoch 1, batch 4; fit() goes on from there.",
    ]
    assert {path.name for path in tmp_path.iterdir()} == names
    assert newest(tmp_path)[1]["timestamp"]["batch"] == 2
    trainer.fit("1ba")
    assert newest(tmp_path)[1]["timestamp"]["batch"] == 4


def disk_is_full(folder):
    "Train where files may be of any length, then half a checkpoint long, then of any length again."
    import resource

    before, story, files = resource.getrlimit(resource.RLIMIT_FSIZE), [], {}

    class Fill:
        def batch_start(self, state):
            if state.timestamp.batch == 2:
                files.update(contents(folder))
                half = max(map(len, files.values())) // 2
                resource.setrlimit(resource.RLIMIT_FSIZE, (half, before[1]))

    trainer = make(folder, 0)
    trainer.state.callbacks.append(Fill())
    for _ in range(3):  # still full when fit() is called again
        try:
            trainer.fit()
        except OSError as error:
            story.append([errno.errorcode[error.errno], *error.__notes__])
        assert contents(folder) == files and trainer.state.timestamp.batch == 3
        assert all(module.training for module in trainer.state.model.modules())
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    trainer.fit()
    return story


def contents(folder):
    "The bytes of all files in `folder`, hidden ones, too, by name."
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.skipif(not find_spec("resource"), reason="no limits on this system")
def test_a_disk_that_is_really_full(tmp_path):
    make(tmp_path / "straight", 0).fit()
    story = in_a_process_of_its_own(disk_is_full, str(tmp_path / "full"))
    assert [first for first, *_ in story] == ["EFBIG"] * 3  # a file too large, which is as full
    for _, note, *more in story:
        assert note.startswith("This was the checkpoint of epoch 1, batch 4; what was saved before")
        assert "fit() goes on from there" in more[0] and len(more) == 1
    assert last(tmp_path / "full") == last(tmp_path / "straight")
    names = [[path.name for path in in_folder(tmp_path / f)] for f in ("full", "straight")]
    assert names[0] == names[1]  # the checkpoint that failed was made up for


def flipped(data, place):
    "`data` with one bit turned."
    data = bytearray(data)
    data[place // 8] ^= 1 << place % 8
    return bytes(data)


def renamed(old, new):
    "Damage that keeps the header a header."
    return lambda data, chance: data.replace(old, new, 1)


HARM = {
    "empty": lambda data, chance: b"",
    "text": lambda data, chance: b"no safetensors, but a letter\n" * 20,
    "noise": lambda data, chance: chance.randbytes(len(data)),
    "zeros": lambda data, chance: bytes(len(data)),
    "cut off": lambda data, chance: data[: chance.randrange(len(data))],
    "cut off in the length": lambda data, chance: data[: chance.randrange(8)],
    "a bit in the length": lambda data, chance: flipped(data, chance.randrange(64)),
    "a bit in the header": lambda data, chance: flipped(
        data, chance.randrange(64, 64 + 8 * int.from_bytes(data[:8], "little"))
    ),
    "a bit in the numbers": lambda data, chance: flipped(
        data, chance.randrange(64 + 8 * int.from_bytes(data[:8], "little"), 8 * len(data))
    ),
    "the number of its batch": renamed(b'"batch":"4"', b'"batch":"t"'),
    "a later batch": renamed(b'"batch":"4"', b'"batch":"9"'),
    "the name of the remark": renamed(b"minima.checkpoint", b"minima.checkroint"),
}


@pytest.mark.parametrize("door", ["autoresume", "load_path"])
@pytest.mark.parametrize("harm", [*HARM, "a folder"])
def test_damaged_checkpoints_are_refused_by_name_and_the_one_before_is_used(harm, door, tmp_path):
    make(tmp_path, 0).fit("4ba")
    bad = tmp_path / "ep0-ba4.safetensors"
    whole = bad.read_bytes()
    enter = {"load_path": {"load_path": tmp_path, "autoresume": False}, "autoresume": {}}[door]
    for seed in range(12 if "bit" in harm or "cut" in harm else 1):
        if harm == "a folder":
            bad.unlink()
            bad.mkdir()
        else:
            bad.write_bytes(HARM[harm](whole, random.Random(seed)))
            assert bad.read_bytes() != whole
        with pytest.warns(UserWarning, match="ep0-ba4.safetensors.*it is not used") as caught:
            trainer = make(tmp_path if door == "autoresume" else None, 1, **enter)
        assert len(caught) == 1 and trainer.state.timestamp.batch == 3, seed
        if harm != "a folder":
            with pytest.raises(ValueError, match="ep0-ba4.safetensors"):
                make(None, 1, autoresume=False, load_path=bad)


def test_if_none_is_whole_all_are_named_and_training_begins_anew(tmp_path):
    make(tmp_path, 0).fit("2ba")
    for path in in_folder(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="it is not used") as caught:
        trainer = make(tmp_path, 0)
    assert len(caught) == 2 and trainer.state.timestamp.batch == 0 and not trainer.saved_checkpoints
    with (
        pytest.warns(UserWarning),
        pytest.raises(FileNotFoundError, match="no checkpoint that is whole"),
    ):
        make(None, 0, autoresume=False, load_path=tmp_path)
    trainer.fit("2ba")
    assert [path.stem for path in in_folder(tmp_path)] == ["ep0-ba2", "ep0-ba1"]


def test_other_tensors_in_the_folder_are_left_alone(tmp_path):
    mi.save({"x": mi.ones(3)}, tmp_path / "weights.safetensors")
    make(tmp_path, 0).fit("1ba")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(tmp_path, 0).state.timestamp.batch == 1


@pytest.mark.parametrize("name", ["{step}.safetensors", "{}.safetensors", "{batch", "ba{batch}"])
def test_names_that_make_no_checkpoint_are_refused_at_once(name, tmp_path):
    with pytest.raises(ValueError, match="save_filename takes {epoch}, {batch} and {run_name}"):
        make(tmp_path, 0, save_filename=name)


@pytest.mark.parametrize("event", ["batch_end", "eval_end", "epoch_end", "epoch_start"])
@pytest.mark.parametrize("batch", [5, 6])
def test_a_checkpoint_in_the_middle_of_what_is_due_has_the_rest(event, batch, tmp_path):
    make(tmp_path / "straight", 0).fit()

    class Saver:
        def save(self, state):
            if state.timestamp.batch == batch:
                trainer.save_checkpoint(tmp_path / "middle.safetensors")

    saver = Saver()
    setattr(saver, event, saver.save)
    trainer = make(None, 0, autoresume=False)
    trainer.state.callbacks.insert(0, saver)  # so that, at the end of things, it is the last
    trainer.fit()
    if not (tmp_path / "middle.safetensors").exists():
        assert (event, batch) in [("eval_end", 6), ("epoch_end", 5), ("epoch_start", 5)]
        return
    file = tmp_path / "middle.safetensors"
    resumed = make(tmp_path / "resumed", 3, autoresume=False, load_path=file)
    assert resumed.state.timestamp.batch == batch
    resumed.fit()
    assert last(tmp_path / "resumed") == last(tmp_path / "straight")


def test_the_last_ones_are_kept(tmp_path):
    trainer = make(tmp_path, 0, save_num_checkpoints_to_keep=2)
    trainer.fit("5ba")
    assert [path.name for path in in_folder(tmp_path)] == [
        "ep0-ba5.safetensors", "ep0-ba4.safetensors"
    ]  # fmt: skip
    assert trainer.saved_checkpoints == in_folder(tmp_path)[::-1]
    make(tmp_path, 1, save_num_checkpoints_to_keep=2).fit("1ba")
    assert [path.name for path in in_folder(tmp_path)] == [
        "ep1-ba6.safetensors", "ep0-ba5.safetensors"
    ]  # fmt: skip


def test_nothing_is_saved_twice(tmp_path, monkeypatch):
    saved, original = [], Trainer.save_checkpoint
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda t: saved.append(original(t).stem))
    make(tmp_path, 0, save_interval="1ep").fit("12ba")
    make(tmp_path, 0, save_interval="1ep").fit("1ba")
    make(tmp_path, 0, save_interval="1ep").fit("0ba")
    assert saved == ["ep1-ba6", "ep2-ba12", "ep2-ba13"]
    with pytest.raises(ValueError, match="name one"):
        original(make(None, 0, autoresume=False))


def test_loading_is_an_event(tmp_path):
    make(tmp_path, 0).fit("2ba")
    trainer, seen = make(None, 1, autoresume=False), []

    class Note:
        def before_load(self, state):
            seen.append(state.timestamp.batch)

        after_load = before_load

    trainer.state.callbacks.append(Note())
    trainer.load_checkpoint(tmp_path)
    assert seen == [0, 2]


def test_runs_in_one_folder_are_told_apart(tmp_path):
    name = "{run_name}-ba{batch}.safetensors"
    for run, n in (("a", 3), ("b", 5)):
        make(tmp_path, 0, run_name=run, save_filename=name).fit(f"{n}ba")
    assert make(tmp_path, 0, run_name="a").state.timestamp.batch == 3
    assert make(tmp_path, 0).state.timestamp.batch == 5


def test_nothing_is_written_over_unasked(tmp_path):
    make(tmp_path, 0).fit("2ba")
    with pytest.raises(ValueError, match="autoresume=True goes on .* save_overwrite=True begins"):
        make(tmp_path, 0, autoresume=False)
    trainer = make(tmp_path, 0, autoresume=False, save_overwrite=True)
    assert trainer.state.timestamp.batch == 0


def test_files_folders_and_weights_only(tmp_path):
    first = make(tmp_path / "runs", 0)
    first.fit("3ba")
    path = first.save_checkpoint(tmp_path / "mine.safetensors")
    for source in (path, tmp_path / "runs"):
        trainer = make(None, 1, autoresume=False, load_path=source)
        assert trainer.state.timestamp == first.state.timestamp
    weights = make(None, 1, autoresume=False, load_path=path, load_weights_only=True)
    assert weights.state.timestamp.batch == 0
    states = [essence(t.state.model.state_dict()) for t in (first, trainer, weights)]
    assert states[0] == states[1] == states[2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint that is whole"):
        trainer.load_checkpoint(tmp_path / "empty")
    mi.save({"w": mi.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="is no checkpoint: it has tensors, and no state"):
        trainer.load_checkpoint(tmp_path / "weights.safetensors")


def test_checkpoints_that_do_not_fit(tmp_path):
    first = make(tmp_path, 0)
    first.fit("1ba")
    with pytest.raises(ValueError, match="the checkpoint has 1 optimizers, this training 2"):
        make(tmp_path, 0, "two")
    other = make(None, 0, autoresume=False)
    other.state.callbacks.pop()
    with pytest.warns(UserWarning, match="callbacks with a memory differ: .*'Watcher 2'"):
        other.load_checkpoint(tmp_path)
    assert other.state.callbacks[1].total == first.state.callbacks[1].total > 0


@pytest.mark.parametrize("tree", [
    {"a": [1, (2.5, None), {3: True, "x": "y"}]}, {}, {"a.b": mi.ones(2), "a": {"b": mi.ones(3)}},
    {"inf": float("inf"), "tiny": 5e-324, "big": 2**70, "n": np.float32(0.1), "i": np.int64(3)},
])  # fmt: skip
def test_nests_come_back(tree, tmp_path):
    save_tree(tree, tmp_path / "tree")
    assert essence(load_tree(tmp_path / "tree")) == essence(tree)
    with pytest.raises(TypeError, match="'x.0' is a function"):
        save_tree({"x": [essence]}, tmp_path / "tree")
