"Training that was killed goes on bit for bit, whenever it was killed."

import errno
import os
import random
import signal
import subprocess
import sys
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


OPTIMIZERS = {
    "adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "two": lambda p: [optim.AdamW(p[:2]), optim.RMSProp(p[2:], lr=0.01, momentum=0.5)],
}
SCHEDULES = {
    "adam": lambda o: optim.OneCycleLR(o, 0.1, total_steps=24),
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
        algorithms=Memory(), callbacks=[Watcher(), Watcher()], eval_interval="5ba",
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


PROGRAM = """
import os, sys
sys.path[:0] = [{root!r}, {tests!r}]
import test_trainer_resume as t

class Told:
    def batch_end(self, state):
        print(state.timestamp.batch, flush=True)

folder, seed, kind, fatal = sys.argv[1], *map(eval, sys.argv[2:])
trainer = t.make(folder, seed, kind)
trainer.state.callbacks.append(Told())
t.die_in_write(fatal)
trainer.fit()
"""


class Fatal:
    "A file whose `n`th write, counted over all files, is the last thing that happens."

    count = 0

    def __init__(self, file, n):
        self.file, self.n = file, n

    def write(self, data):
        Fatal.count += 1
        if Fatal.count == self.n:
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def die_in_write(n):
    "Kill this process in the middle of the `n`th write to a checkpoint."
    from contextlib import contextmanager

    original = serialization._replacing

    @contextmanager
    def replacing(path):
        with original(path) as file:
            yield Fatal(file, n)

    serialization._replacing = replacing


def launch(folder, seed, kind, kill_after=None, fatal=0):
    "Train in a process of its own, which is killed after `kill_after` batches. Says if it was."
    program = PROGRAM.format(root=str(ROOT), tests=str(ROOT / "tests"))
    words = [sys.executable, "-c", program, str(folder), repr(seed), repr(kind), repr(fatal)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.strip() == str(kill_after):
                process.kill()
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals that kill on this system")
def test_killed_at_random_moments(tmp_path):
    make(tmp_path / "straight", 0).fit()
    chance, batch, kills = random.Random(1), 0, 0
    while batch < 24 and kills < 4:
        batch += chance.randrange(1, 9)
        kills += launch(tmp_path / "killed", kills, "adam", kill_after=batch)
    assert kills > 1
    launch(tmp_path / "killed", kills, "adam")
    assert last(tmp_path / "killed") == last(tmp_path / "straight")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals that kill on this system")
def test_killed_in_the_middle_of_a_save(tmp_path):
    make(tmp_path / "straight", 0, "momentum").fit()
    for fatal in (200, 150):
        assert launch(tmp_path / "killed", 0, "momentum", fatal=fatal)
        assert [*(tmp_path / "killed").glob(".*.part")]
        assert all(load_tree(path) for path in in_folder(tmp_path / "killed"))
    make(tmp_path / "killed", 5, "momentum").fit()
    assert last(tmp_path / "killed") == last(tmp_path / "straight")


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
    (note,) = caught.value.__notes__
    assert note == "This was the checkpoint of epoch 1, batch 4; what was saved before is whole."
    assert {path.name for path in tmp_path.iterdir()} == names
    assert newest(tmp_path)[1]["timestamp"]["batch"] == 2
    trainer.fit("1ba")
    assert newest(tmp_path)[1]["timestamp"]["batch"] == 4


@pytest.mark.parametrize("harm", [
    lambda data: data[: len(data) // 2], lambda data: data[:5], lambda data: b"",
    lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:],
])  # fmt: skip
def test_damaged_checkpoints_are_named_and_the_one_before_is_used(harm, tmp_path, capsys):
    make(tmp_path, 0).fit("4ba")
    bad = tmp_path / "ep0-ba4.safetensors"
    bad.write_bytes(harm(bad.read_bytes()))
    with pytest.warns(UserWarning, match="ep0-ba4.safetensors: .*(used|not used)"):
        trainer = make(tmp_path, 1)
    assert capsys.readouterr().out.endswith("Trainer: goes on from ep0-ba3.safetensors\n")
    assert trainer.state.timestamp.batch == 3
    with pytest.raises(ValueError, match="cannot load .*ep0-ba4.safetensors"):
        make(None, 1, autoresume=False, load_path=bad)


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
    assert other.state.callbacks[0].total == first.state.callbacks[0].total > 0


@pytest.mark.parametrize("tree", [
    {"a": [1, (2.5, None), {3: True, "x": "y"}]}, {}, {"a.b": mi.ones(2), "a": {"b": mi.ones(3)}},
    {"inf": float("inf"), "tiny": 5e-324, "big": 2**70, "n": np.float32(0.1), "i": np.int64(3)},
])  # fmt: skip
def test_nests_come_back(tree, tmp_path):
    save_tree(tree, tmp_path / "tree")
    assert essence(load_tree(tmp_path / "tree")) == essence(tree)
    with pytest.raises(TypeError, match="'x.0' is a function"):
        save_tree({"x": [essence]}, tmp_path / "tree")
