"Callbacks that come with the Trainer."

import numpy as np
import pytest

import minima as mi
from minima import nn, optim
from minima.data import DataLoader, TensorDataset
from minima.trainer import (
    EarlyStopper,
    InMemoryLogger,
    LRFinder,
    LRMonitor,
    NaNStop,
    SpeedMonitor,
    State,
    Timestamp,
    Trainer,
)


def batches(bad=None):
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    if bad is not None:
        x[bad] = np.nan
    y = (np.nan_to_num(x).sum(axis=1) > 0).astype("int64")
    return DataLoader(TensorDataset(x, y), 8, shuffle=bad is None)


def make(*callbacks, model=None, loader=None, **settings):
    mi.manual_seed(0)
    if model is None:
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    settings.setdefault("optimizers", optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    loader = loader or batches()
    return Trainer(model, loader, callbacks=callbacks, progress_bar=False, **settings)


def bits(model):
    return [t.numpy().tobytes() for t in model.state_dict().values()]


def test_rates_are_logged_as_they_were_used():
    logger, model = InMemoryLogger(), nn.Linear(4, 2)
    groups = [{"params": [model.weight], "lr": 0.5}, {"params": [model.bias], "lr": 0.25}]
    make(LRMonitor(), model=model, optimizers=optim.SGD(groups), loggers=logger,
         schedulers=lambda o: optim.ExponentialLR(o, 0.5)).fit(2)  # fmt: skip
    assert [value for _, value in logger.data["lr/0"]] == [0.5] * 5 + [0.25] * 5
    assert logger.data["lr/1"][0] == (1, 0.25)
    make(LRMonitor(), loggers=logger).fit(1)
    assert logger.data["lr"] == [(batch, 0.1) for batch in range(1, 6)]


def test_speed_is_a_mean_over_a_window():
    logger, monitor = InMemoryLogger(), SpeedMonitor(window=2)
    state = State(None, loggers=[logger])
    monitor.fit_start(state)
    for seconds in (1.0, 0.5, 0.25):
        state.timestamp = state.timestamp.next_batch(6, seconds)
        monitor.batch_end(state)
    found = [speed for _, speed in logger.data["samples_per_second"]]
    assert found == [6.0, 8.0, 16.0]


@pytest.mark.parametrize("monitor, mode, values, stopped", [
    ("eval_loss", None, [3, 2, 2, 2, 1], 4), ("eval_loss", None, [3, 2, 2.5, 1.5, 1.6, 1.6], 6),
    ("eval_accuracy", None, [1, 2, 3, 2, 2, 2], 5), ("eval_loss", "max", [3, 2, 1, 0], 3),
    ("eval_loss", None, [3, 2.9, 2.8, 2.0], 3), ("eval_loss", None, [5, 4, 3, 2, 1], None),
    ("eval_loss", None, [np.nan, 9, np.nan, 1], None), ("eval_loss", None, [9, np.nan, np.nan], 3),
])  # fmt: skip
def test_enough_is_enough(monitor, mode, values, stopped):
    stopper, state = EarlyStopper(monitor, patience=1, min_delta=0.3, mode=mode), State(None)
    found = None
    for n, value in enumerate(values, 1):
        state.metrics = {monitor: value}
        stopper.eval_end(state)
        if state.stop_reason:
            found = n
            break
        memory = stopper.state_dict()  # each time a new one, as after a restart
        stopper = EarlyStopper(monitor, patience=1, min_delta=0.3, mode=mode)
        stopper.load_state_dict(memory)
    assert found == stopped


def test_early_stoppers_say_what_they_lack():
    with pytest.raises(ValueError, match="'min' or 'max'"):
        EarlyStopper(mode="least")
    with pytest.raises(KeyError, match="looks for 'eval_f1'; there are .*eval_loss"):
        EarlyStopper("eval_f1").eval_end(State(None, metrics={"eval_loss": 1.0}))


class Bad(nn.Module):
    "A layer that fails where dropout lets something through."

    def __init__(self, from_batch):
        self.calls, self.from_batch = 0, from_batch

    def forward(self, x):
        self.calls += 1
        return x * float("inf") if self.calls >= self.from_batch else x


def test_the_first_bad_layer_is_named_and_no_step_is_taken():
    weights = []

    class Keep:
        def batch_start(self, state):
            weights.append(bits(state.model))

    bad = nn.Sequential(nn.ReLU(), Bad(3))
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), bad, nn.Linear(8, 2))
    trainer = make(NaNStop(), Keep(), model=model)
    with np.errstate(all="ignore"):
        trainer.fit(1)
    reason = trainer.state.stop_reason
    assert reason == "the loss is nan, first in the output of Bad '2.1'"
    assert trainer.state.timestamp.batch == 2 and bits(model) == weights[-1]
    assert all(module._hooks is None or not module._hooks.after for module in model.modules())


@pytest.mark.parametrize("seed", range(8))
def test_the_bad_layer_is_looked_for_with_the_same_draws(seed):
    class Log(nn.Module):
        "A layer that fails on what dropout has dropped."

        def forward(self, x):
            return x.log()

    model = nn.Sequential(nn.Dropout(0.5), Log(), nn.Linear(1, 2))
    trainer = make(NaNStop(), model=model, loader=[(mi.ones((1, 1)), mi.tensor([0]))] * 50)
    mi.manual_seed(seed)
    with np.errstate(all="ignore"):
        trainer.fit(1)
    assert "Log '1'" in trainer.state.stop_reason
    draws = mi.random.default_generator.get_state()["offset"]
    assert draws == trainer.state.timestamp.batch + 1  # as many as there were calls


def test_bad_batches_weights_and_gradients_are_told_apart():
    trainer = make(NaNStop(), loader=batches(bad=20))
    with np.errstate(all="ignore"):
        trainer.fit(1)
    assert trainer.state.timestamp.batch == 2
    assert trainer.state.stop_reason == "the loss is nan, the batch has such numbers in it"

    model = nn.Linear(4, 2)
    model.bias.array[...] = np.inf
    trainer = make(NaNStop(), model=model)
    with np.errstate(all="ignore"):
        trainer.fit(1)
    assert trainer.state.stop_reason.endswith("the weights of 'bias' were bad already")

    model = nn.Linear(4, 2)
    trainer = make(NaNStop(), model=model, loss_fn=lambda o, t: (o.sum() * 0.0) ** 0.5)
    with np.errstate(all="ignore"):
        trainer.fit(1)
    assert "the gradient of 'weight' is not finite" in trainer.state.stop_reason
    assert trainer.state.timestamp == Timestamp(epoch_batches=5)


def test_good_training_is_left_alone():
    found = []
    for callbacks in ([NaNStop()], []):
        trainer = make(*callbacks)
        trainer.fit(2)
        found.append(bits(trainer.state.model))
    assert found[0] == found[1]


def test_the_search_for_a_rate_leaves_no_trace():
    finder = LRFinder(low=1e-3, high=1e3, batches=30)
    trainer = make(finder)
    untouched, memory = bits(trainer.state.model), repr(trainer.state.optimizers[0].state_dict())
    draws = mi.random.default_generator.get_state()
    trainer.fit(10)
    assert bits(trainer.state.model) == untouched and trainer.state.optimizers[0].state == {}
    assert repr(trainer.state.optimizers[0].state_dict()) == memory
    assert mi.random.default_generator.get_state() == draws
    np.testing.assert_allclose(np.diff(np.log(finder.rates)), np.log(1e6) / 29)
    assert len(finder.rates) == len(finder.losses) <= 30
    assert finder.rates[0] == 1e-3 and 1e-4 < finder.suggestion < finder.rates[-1]


def test_the_search_for_a_rate_says_what_it_needs():
    with pytest.raises(RuntimeError, match="no rates were tried yet"):
        _ = LRFinder().suggestion
    for settings in ({"low": 0.0}, {"low": 2.0, "high": 1.0}, {"batches": 1}):
        with pytest.raises(ValueError, match="rates grow from low to high"):
            LRFinder(**settings)
    pytest.importorskip("matplotlib").use("agg")
    finder = LRFinder(batches=5)
    make(finder).fit(1)
    assert finder.plot().axes[0].get_xscale() == "log"
