"Every method of training, killed in the middle, goes on bit for bit: add yours to METHODS."

import os
import random
import signal
import warnings

import numpy as np
import pytest
from test_trainer_resume import last

import minima as mi
from minima import algorithms, nn, optim
from minima.data import DataLoader, TensorDataset
from minima.random import Generator
from minima.trainer import Algorithm, Trainer

METHODS = {  # by any name, a function that makes the algorithm; each class at least once
    "gyro": lambda: algorithms.GyroDropout(16, 4),
    "gyro, alone": lambda: algorithms.GyroDropout(9, 2, shared=False, schedule="balanced"),
    "stochastic depth, by block": lambda: algorithms.StochasticDepth(0.5, "uniform"),
    "stochastic depth, by sample": lambda: algorithms.StochasticDepth(0.3, method="sample"),
    "fused layer norm": lambda: algorithms.FusedLayerNorm(),
    "freezing": lambda: algorithms.LayerFreezing(0.1),
    "clipping by norm": lambda: algorithms.GradientClipping("norm", 0.1),
    "clipping by value": lambda: algorithms.GradientClipping("value", 0.01),
    "adaptive clipping": lambda: algorithms.GradientClipping("adaptive", 0.01),
    "gyro, measured": lambda: algorithms.GyroDropout(8, 8, 3, scale="measured", block=2),
    "label smoothing": lambda: algorithms.LabelSmoothing(0.2),
    "mixup": lambda: algorithms.MixUp(0.8),
    "mixup of losses": lambda: algorithms.MixUp(0.8, True, Generator(1)),
    "ema": lambda: algorithms.EMA("5ba"),
    "ema, later": lambda: algorithms.EMA(smoothing=0.7, ema_start="0.4dur", update_interval="4ba"),
}


def network(seed):
    "A model that has something for every method."
    inner = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.2, Generator(seed)))
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(),
        nn.Residual(inner), nn.Linear(8, 3),
    )  # fmt: skip


def make(method, folder, seed, **settings):
    "A training of four epochs with six batches each, two parts a batch; `seed` is for all draws."
    mi.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    x = np.random.default_rng(0).normal(size=(46, 4)).astype("float32")
    data = TensorDataset(x, x.argmax(axis=1) % 3)
    model = network(seed)
    settings = dict(max_duration="4ep", save_interval="4ep") | settings
    return Trainer(
        model, DataLoader(data, 8, shuffle=True), DataLoader(data, 16),
        optimizers=optim.Adam(model.parameters(), lr=0.01), algorithms=METHODS[method](),
        schedulers=lambda o: optim.OneCycleLR(o, 0.05, total_steps=24), grad_accumulation=2,
        save_folder=folder, autoresume=folder is not None, progress_bar=False, lint=False,
        **settings,
    )  # fmt: skip


class Killer:
    "Ends the process, as `kill -9` does, when so many batches are done."

    def __init__(self, batch):
        self.batch = batch

    def batch_end(self, state):
        if state.timestamp.batch == self.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def die(method, folder, seed, batch):
    "Train in a process of its own until it is killed; the checkpoint is that of a batch before."
    if not (child := os.fork()):
        try:
            make(method, folder, seed, callbacks=Killer(batch), save_interval="1ba").fit()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that fork on this system")
@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_bit_for_bit(method, tmp_path):
    straight = make(method, tmp_path / "straight", 0)
    straight.fit()
    die(method, tmp_path / "killed", 0, 9)  # in the middle of an epoch
    die(method, tmp_path / "killed", 5, 13)  # after the last batch of an epoch
    resumed = make(method, tmp_path / "killed", 9)
    assert resumed.state.timestamp.batch == 12
    resumed.fit()
    assert last(tmp_path / "killed") == last(tmp_path / "straight")
    assert resumed.history == straight.history


@pytest.mark.parametrize("method", METHODS)
def test_a_second_fit_operates_on_nothing(method):
    trainer = make(method, None, 0, max_duration=None)
    modules = [id(module) for module in trainer.state.model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit("1ep")
        trainer.fit("7ba")
    assert [id(module) for module in trainer.state.model.modules()] == modules


def test_each_class_is_among_them():
    public = (getattr(algorithms, name) for name in algorithms.__all__)
    classes = {c for c in public if isinstance(c, type) and issubclass(c, Algorithm)}
    assert {type(method()) for method in METHODS.values()} == classes
