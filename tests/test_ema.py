"Averaged weights: the formula, PyTorch's, times, evaluations, and training that does not notice."

import copy

import numpy as np
import pytest

import minima as mi
from minima import nn, optim
from minima.algorithms import EMA
from minima.algorithms.ema import compute_ema
from minima.autograd import Tensor
from minima.data import DataLoader, TensorDataset
from minima.trainer import Callback, Time, Timestamp, Trainer
from minima.trainer.batches import evaluate
from minima.trainer.checkpoints import load_tree
from minima.trainer.events import Event, State, around_evaluation

rng = np.random.default_rng(0)


def shaken(model):
    "Give `model` other weights and statistics."
    for t in model.state_dict().values():
        t[...] = rng.normal(size=t.shape) if t.dtype.kind == "f" else rng.integers(0, 9, t.shape)
    return model


def arrays(state_dict):
    return {name: t.numpy().copy() for name, t in state_dict.items()}


# ---- the function ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("as_dict", [False, True])
def test_the_formula(dtype, smoothing, as_dict):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).to(dtype=dtype)
    average = shaken(copy.deepcopy(shaken(model)))
    now, old = arrays(model.state_dict()), arrays(average.state_dict())
    compute_ema(model, average.state_dict() if as_dict else average, smoothing)
    for name, t in average.state_dict().items():
        expected = smoothing * old[name] + (1 - smoothing) * now[name]
        if t.dtype.kind == "i":
            assert "num_batches_tracked" in name
            expected = now[name]
        np.testing.assert_allclose(t, expected, rtol=0, atol=8 * np.finfo(dtype).eps)
        assert t.dtype == now[name].dtype
    assert all((now[k] == t.numpy()).all() for k, t in model.state_dict().items())


def test_what_does_not_move_stays_bit_for_bit():
    model = shaken(nn.Linear(40, 30))
    average = copy.deepcopy(model)
    for _ in range(50):
        compute_ema(model, average, 0.9)
    assert (average.weight == model.weight).all()


def test_it_is_that_of_pytorch(torch):
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    ours, theirs = nn.BatchNorm1d(4).double(), torch.nn.BatchNorm1d(4).double()
    averaged = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ema = EMA(smoothing=0.9)
    for n in range(1, 6):
        shaken(ours)
        theirs.load_state_dict({k: torch.tensor(v) for k, v in arrays(ours.state_dict()).items()})
        averaged.update_parameters(theirs)
        ema.apply(Event.BATCH_END, State(ours, max_duration=Time(9), timestamp=Timestamp(0, n)))
        for name, t in averaged.module.state_dict().items():
            if name != "num_batches_tracked":  # PyTorch averages counts, and cuts the fraction off
                np.testing.assert_allclose(ema.average[name], t, rtol=1e-14)
    assert ema.average["num_batches_tracked"].item() == ours.num_batches_tracked.item()


def test_by_default_a_hundredth_is_new():
    model = shaken(nn.Linear(2, 2).double())
    average = shaken(copy.deepcopy(model))
    expected = 0.99 * average.weight.data + 0.01 * model.weight.data
    compute_ema(model, average)
    assert abs(average.weight.data - expected).max().item() < 1e-15


def test_tied_weights_move_once():
    layer = shaken(nn.Linear(3, 3).double())
    model = nn.Sequential(layer, layer)
    average = copy.deepcopy(model)
    shaken(layer)
    expected = (average[0].weight.data + layer.weight.data) / 2
    compute_ema(model, average, 0.5)
    assert abs(average[1].weight - expected).max().item() < 1e-15
    assert average[0].weight is average[1].weight


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_smoothing_is_a_share(smoothing):
    model = nn.Linear(2, 2)
    for make in (lambda s: EMA(smoothing=s), lambda s: compute_ema(model, model, s)):
        with pytest.raises(ValueError, match="share, from 0 to 1, of the old average; got"):
            make(smoothing)


def test_arguments_that_cannot_be_meant():
    with pytest.raises(ValueError, match="copies of each other; only one has bias"):
        compute_ema(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False)
    with pytest.raises(ValueError, match="only one has bias, weight$"):
        compute_ema(one, other)
    with pytest.raises(ValueError, match="give half_life or smoothing; got '5ba' and 0.9"):
        EMA("5ba", 0.9)
    with pytest.raises(ValueError, match="a half-life is longer than nothing; got 0ba"):
        EMA("0ba")
    for settings in ({"half_life": "3"}, {"ema_start": "x"}, {"update_interval": 0.5}):
        with pytest.raises(ValueError, match="a time is a number with a unit"):
            EMA(**settings)


# ---- times ----


class Walk:
    "Steps of a training in which the only weight is the number of the batch."

    def __init__(self, ema, batches, per_epoch=10, rows=4, max_duration="4ep"):
        self.model = nn.Linear(1, 1, bias=False).double()
        state = State(self.model, max_duration=Time(max_duration))
        state.timestamp = Timestamp(epoch_batches=per_epoch)
        ema.apply(Event.INIT, state)
        self.seen = []
        for _ in range(batches):
            if state.timestamp.batch_in_epoch == per_epoch:
                state.timestamp = state.timestamp.next_epoch()
            state.timestamp = state.timestamp.next_batch(rows)
            self.model.weight.data[...] = float(state.timestamp.batch)
            ema.apply(Event.BATCH_END, state)
            self.seen.append(None if ema.average is None else ema.average["weight"].item())


@pytest.mark.parametrize("settings, updates", [
    ({}, range(1, 26)), ({"ema_start": "5ba"}, range(5, 26)), ({"ema_start": "1ep"}, range(10, 26)),
    ({"ema_start": "0.5dur"}, range(20, 26)), ({"ema_start": "21sp"}, range(6, 26)),
    ({"update_interval": "4ba"}, range(4, 26, 4)), ({"update_interval": "1ep"}, [10, 20]),
    ({"update_interval": "10ba", "ema_start": "15ba"}, [15, 20]),
    ({"update_interval": "6sp"}, [k for k in range(1, 26) if k % 3 != 1]),
    ({"update_interval": "0.05dur"}, range(2, 26, 2)), ({"ema_start": "1dur"}, []),
])  # fmt: skip
def test_when_it_is_updated(settings, updates):
    seen = Walk(EMA(smoothing=0.75, **settings), 25).seen
    average, expected = None, []
    for k in range(1, 26):
        if k in updates:
            average = k if average is None else 0.75 * average + 0.25 * k
        expected.append(average)
    assert [v is None for v in seen] == [v is None for v in expected]
    np.testing.assert_allclose(
        [v for v in seen if v is not None], [v for v in expected if v is not None], rtol=1e-14
    )


@pytest.mark.parametrize("half_life, batches", [
    ("5ba", 5), ("0.5ep", 5), ("20sp", 5), ("0.125dur", 5), (1, 10),
])  # fmt: skip
@pytest.mark.parametrize("interval", [1, 2])
def test_half_lives_in_every_unit(half_life, batches, interval):
    share, average, expected = 2 ** (-interval / batches), None, []
    for k in range(1, 21):
        if k % interval == 0:
            average = k if average is None else share * average + (1 - share) * k
        expected.append(average)
    seen = Walk(EMA(half_life, update_interval=f"{interval}ba"), 20).seen
    np.testing.assert_allclose(seen[interval - 1 :], expected[interval - 1 :], rtol=1e-13)


def test_the_default_half_life_is_a_thousand_batches():
    assert Walk(EMA(), 2).seen[1] == pytest.approx(2 - 2**-0.001, rel=1e-14)


def test_a_new_training_begins_anew():
    ema = EMA(smoothing=0.9)
    Walk(ema, 5)
    assert Walk(ema, 3).seen == Walk(EMA(smoothing=0.9), 3).seen


# ---- in a Trainer ----

X = Tensor(rng.normal(size=(46, 4)).astype("float32"))
Y = Tensor((X.numpy().sum(axis=1) > 0).astype("int64"))
TEST = [(X[:20], Y[:20]), (X[20:], Y[20:])]


def make(ema, seed=0, gyro=False, **settings):
    mi.manual_seed(seed)
    schedule = nn.GyroSchedule(6, 4, sigma=8, tau=2)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(),
        nn.GyroDropout(schedule=schedule) if gyro else nn.Dropout(0.3), nn.Linear(8, 2),
    )  # fmt: skip
    return Trainer(
        model, DataLoader(TensorDataset(X, Y), 8, shuffle=True), TEST,
        **{"max_duration": 4, "eval_interval": "5ba"} | settings, algorithms=ema,
        optimizers=optim.Adam(model.parameters(), lr=0.05), progress_bar=False, lint=False,
    )  # fmt: skip


def fitted(ema, duration=None):
    trainer = make(ema)
    trainer.fit(duration)
    return trainer


def bits(model):
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def test_training_does_not_notice():
    plain, averaged = fitted(()), fitted(EMA("3ba"))
    assert bits(plain.state.model) == bits(averaged.state.model)
    assert plain.history["loss"] == averaged.history["loss"]
    assert plain.history["eval_loss"] != averaged.history["eval_loss"]


def test_evaluations_and_predictions_are_made_with_the_average():
    ema, found = EMA("3ba"), []

    class Look(Callback):
        def eval_end(self, state):
            other = copy.deepcopy(state.model)
            other.load_state_dict(ema.average)
            found.append(evaluate(other, TEST, state.loss_fn)["loss"] == state.metrics["eval_loss"])

    trainer = make(ema, callbacks=Look())
    trainer.fit()
    assert found == [True] * 5
    model = trainer.state.model
    other = copy.deepcopy(model)
    other.load_state_dict(ema.average)
    assert trainer.eval() == evaluate(other, TEST, trainer.state.loss_fn)
    assert trainer.eval() != evaluate(model, TEST, trainer.state.loss_fn)
    other.eval()
    assert trainer.predict(X).tolist() == other(X).tolist()
    before = bits(model)
    with ema.averaged(model) as same:
        assert same is model and bits(model) == bits(other)
    assert bits(model) == before


def test_before_the_average_begins_evaluations_see_the_weights():
    trainer, plain = fitted(EMA(ema_start="10ba"), "9ba"), fitted((), "9ba")
    assert trainer.eval() == plain.eval() and trainer.history == plain.history


def test_what_fails_in_an_evaluation_leaves_the_weights():
    def brittle(outputs, targets):
        raise ZeroDivisionError

    ema = EMA("3ba")
    trainer = make(ema, metrics=brittle)
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    plain = fitted((), "5ba")
    assert bits(trainer.state.model) == bits(plain.state.model)
    with pytest.raises(ZeroDivisionError), ema.averaged(trainer.state.model):
        raise ZeroDivisionError
    assert bits(trainer.state.model) == bits(plain.state.model)
    ema.average["0.weight"] = mi.zeros(1, 1)
    with pytest.raises(RuntimeError, match="0.weight"), ema.averaged(trainer.state.model):
        pass
    assert bits(trainer.state.model) == bits(plain.state.model)


def test_blocks_around_evaluations_lie_inside_of_each_other():
    notes = []

    class Block:
        def __init__(self, name):
            self.name = name

        def match(self, event, state):
            return False

        def around_evaluation(self, state):
            return self

        def __enter__(self):
            notes.append(self.name)

        def __exit__(self, *error):
            notes.append(self.name.upper())

    class Bare:
        def match(self, event, state):
            return False

    with around_evaluation(State(None, algorithms=[Block("a"), Bare(), Block("b")])):
        notes.append("-")
    assert "".join(notes) == "ab-BA"


@pytest.mark.parametrize("gyro", [False, True])
@pytest.mark.parametrize("settings", [
    {"half_life": "3ba"}, {"smoothing": 0.8, "ema_start": "0.5dur"},
    {"half_life": "0.5ep", "update_interval": "7ba"},
], ids=["plain", "later", "rarely"])  # fmt: skip
def test_resumed_bit_for_bit(settings, gyro, tmp_path):
    class Killer:
        def __init__(self, batch):
            self.batch = batch

        def batch_end(self, state):
            if state.timestamp.batch == self.batch:
                raise KeyboardInterrupt

    def run(seed, folder, end=None):
        ema = EMA(**settings)
        trainer = make(
            ema, seed, gyro, save_folder=folder, save_interval="1ba", autoresume=True,
            save_num_checkpoints_to_keep=1, callbacks=Killer(end),
        )  # fmt: skip
        try:
            trainer.fit()
        except KeyboardInterrupt:
            return None
        average = {name: t.numpy().tobytes() for name, t in ema.average.items()}
        return bits(trainer.state.model), average, trainer.history

    straight = run(0, tmp_path / "straight")
    assert run(1, tmp_path / "other") != straight
    for seed, end in enumerate([6, 13, 18]):
        assert run(seed, tmp_path / "cut", end) is None
    assert run(4, tmp_path / "cut") == straight


def test_a_checkpoint_has_both(tmp_path):
    ema = EMA("3ba")
    trainer = make(ema)
    trainer.fit("8ba")
    tree = load_tree(trainer.save_checkpoint(tmp_path / "both"))
    average = tree["algorithms"]["EMA"]["average"]
    assert {k: t.numpy().tobytes() for k, t in tree["model"].items()} == bits(trainer.state.model)
    other = make(())
    other.state.model.load_state_dict(average)
    with ema.averaged(trainer.state.model) as model:
        assert bits(model) == bits(other.state.model)


def test_what_is_loaded_has_memory_of_its_own_and_the_dtype_of_the_model(tmp_path):
    first = make(EMA("3ba"))
    first.fit("4ba")
    memory = first.state.algorithms[0].state_dict()
    before = arrays(memory["average"])
    ema = EMA("3ba")
    ema.load_state_dict(memory)
    state = State(copy.deepcopy(first.state.model).double(), max_duration=Time(1))
    ema.apply(Event.AFTER_LOAD, state)
    assert ema.average["0.weight"].dtype == "float64"
    state.timestamp = Timestamp(0, 5, 40)
    ema.apply(Event.BATCH_END, state)
    assert all((before[k] == t.numpy()).all() for k, t in memory["average"].items())
    fresh = EMA()
    fresh.apply(Event.AFTER_LOAD, state)  # nothing to move yet, and no step was taken
    assert fresh.average is None


def test_it_listens_to_three_events():
    found = [event for event in Event if EMA().match(event, None)]
    assert found == [Event.INIT, Event.AFTER_LOAD, Event.BATCH_END]
