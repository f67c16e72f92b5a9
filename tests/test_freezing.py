"Freezing: from the input side, at an even pace; optimizers, tied weights, and after a restart."

import warnings
from contextlib import contextmanager

import numpy as np
import pytest

import minima as mi
from minima import functional as cf
from minima import nn, optim
from minima.algorithms import GradientClipping, LayerFreezing, NoEffectWarning
from minima.algorithms.freezing import freeze_layers
from minima.autograd import Tensor
from minima.autograd.tape import read_through
from minima.data import DataLoader, TensorDataset
from minima.trainer import Event, InMemoryLogger, State, Time, Timestamp, Trainer


class Own(nn.Module):
    "A layer with Parameters of its own, besides those of a layer in it."

    def __init__(self, n):
        self.scale, self.inner = nn.Parameter(np.ones(n, "float32")), nn.Linear(n, n)

    def forward(self, x):
        return self.inner(x * self.scale)


def network(n=5):
    return nn.Sequential(
        nn.Linear(7, n), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(n), Own(n)), nn.Linear(n, 3)
    )


ORDER = ["0", "2.0", "2.1", "2.1.inner", "3"]


def learning(model):
    return [path for path, p in model.named_parameters() if p.requires_grad]


def run(model, rows=6, seed=0):
    x = np.random.default_rng(seed).normal(size=(rows, 7))
    (model(Tensor(x.astype(model[0].weight.dtype))) ** 2).sum().backward()


@contextmanager
def pullbacks():
    "The names of rules whose pullbacks are called."
    names = []

    def around(read, rule):
        def reading(*args, **settings):
            out = read(*args, **settings)
            if not isinstance(out, tuple):
                return out
            return out[0], *(noted(pull, rule.__name__) for pull in out[1:])

        return reading

    def noted(pull, name):
        return lambda g: (names.append(name), pull(g))[1]

    before = read_through(around)
    try:
        yield names
    finally:
        read_through(before)


# ---- the function ----


@pytest.mark.parametrize("fraction, layers", [
    (0.19999, 0), (0.2, 1), (0.5, 2), (0.6, 3), (0.999, 4), (1.0, 5), (np.float32(0.5), 2)
])  # fmt: skip
def test_a_fraction_is_rounded_down(fraction, layers):
    one, other = network(), network()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert freeze_layers(one, fraction) == freeze_layers(other, layers=layers) == ORDER[:layers]
    assert len(caught) == (0 if layers else 2)
    assert learning(one) == learning(other)
    assert {path.rpartition(".")[0] for path in learning(one)} == set(ORDER[layers:])


def test_decimal_fractions_mean_what_they_say():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(100)))
    assert len(freeze_layers(model, 0.29)) == 29


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSProp"])
def test_optimizers_leave_the_frozen_alone_and_remember_the_others(name):
    options = {"momentum": 0.9} if name in ("SGD", "RMSProp") else {}
    optimizers = []
    for freeze in (False, True):
        mi.manual_seed(0)
        model = network()
        optimizer = getattr(optim, name)(model.parameters(), lr=0.1, weight_decay=0.1, **options)
        optimizers.append((model, optimizer))
        run(model)
        optimizer.step()
        if freeze:
            assert freeze_layers(model, layers=3, optimizers=(optimizer,)) == ORDER[:3]
    (free, _), (frozen, optimizer) = optimizers
    names = [path for path, _ in frozen.named_parameters()]
    left = [p for p in frozen.parameters() if p.requires_grad]
    assert [*map(id, optimizer.state)] == [*map(id, left)] and len(left) == 4
    optimizers[0][1].step()
    optimizer.step()  # with the gradients of the step before, where there are any
    for path, p, other in zip(names, frozen.parameters(), free.parameters()):
        same = np.array_equal(p.data.numpy(), other.data.numpy())
        assert same == p.requires_grad, path
        assert (p.grad is None) == (not p.requires_grad)
    again = getattr(optim, name)(network().parameters(), lr=0.1, weight_decay=0.1, **options)
    again.load_state_dict(optimizer.state_dict())
    assert len(again.state) == 4


def test_one_optimizer_or_none_will_do():
    model = network()
    optimizer = optim.Adam(model.parameters())
    run(model)
    optimizer.step()
    freeze_layers(model, layers=1)
    assert len(optimizer.state) == 9
    freeze_layers(model, layers=1, optimizers=optimizer)
    assert len(optimizer.state) == 7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_gradients_are_the_same_bit_for_bit(dtype):
    mi.manual_seed(0)
    model = network().to(dtype=dtype)
    run(model)
    before = {path: p.grad.numpy().copy() for path, p in model.named_parameters()}
    freeze_layers(model, layers=2)
    model.zero_grad()
    run(model)
    for path, p in model.named_parameters():
        assert (p.grad is None) == (path[:3] in ("0.w", "0.b", "2.0"))
        assert p.grad is None or p.grad.numpy().tobytes() == before[path].tobytes()


def test_gradients_are_those_of_torch(torch):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    state = mi.serialization.torch_state(model)
    theirs.double().load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    freeze_layers(model, 0.5)
    theirs[0].requires_grad_(False)
    x = np.random.default_rng(0).normal(size=(5, 4))
    (model(Tensor(x)) ** 3).sum().backward()
    (theirs(torch.tensor(x)) ** 3).sum().backward()
    assert model[0].weight.grad is None and theirs[0].weight.grad is None
    np.testing.assert_allclose(model[2].weight.grad.numpy().T, theirs[2].weight.grad, rtol=1e-12)


@pytest.mark.parametrize("frozen", range(6))
def test_the_walk_back_ends_at_the_first_layer_that_learns(frozen):
    model = nn.Sequential(*(nn.Linear(7, 7, bias=False) for _ in range(6)))
    if frozen:
        freeze_layers(model, layers=frozen)
    with pullbacks() as names:
        run(model)
    assert names.count("linear") == 2 * (6 - frozen) - 1


def test_tied_parameters_learn_as_long_as_one_of_their_layers_does():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    freeze_layers(model, layers=2)
    assert learning(model) == ["0.weight", "2.bias"]
    freeze_layers(model, 1.0)
    assert learning(model) == []


def test_more_can_be_frozen_and_what_others_froze_stays():
    model = network()
    model[3].weight.requires_grad_(False)
    freeze_layers(model, layers=1)
    freeze_layers(model, layers=2)
    assert learning(model) == ["2.1.scale", "2.1.inner.weight", "2.1.inner.bias", "3.bias"]


@pytest.mark.parametrize("wrong, error, words", [
    ({}, TypeError, "Say a fraction, as 0.5, or how many, as layers=3"),
    ({"fraction": 0.5, "layers": 2}, TypeError, "how much to freeze"),
    ({"fraction": 1}, TypeError, "such as 0.5 or 1.0; got 1: for a number of layers, say layers=1"),
    ({"fraction": -0.1}, ValueError, "from 0.0 to 1.0; got -0.1"),
    ({"fraction": 1.1}, ValueError, "got 1.1"), ({"layers": 6}, ValueError, "of 5 layers .* got 6"),
    ({"layers": -1}, ValueError, "0 to 5; got -1"),
])  # fmt: skip
def test_mistakes_are_named(wrong, error, words):
    model = network()
    with pytest.raises(error, match=words):
        cf.freeze_layers(model, **wrong)
    assert len(learning(model)) == 9


@pytest.mark.parametrize("model, n", [(nn.Sequential(nn.ReLU()), 0), (nn.Linear(2, 2), 1)])
def test_nothing_to_freeze_is_a_warning_that_names_the_caller(model, n):
    with pytest.warns(NoEffectWarning, match=f"of {n} layers none") as caught:
        assert freeze_layers(model, 0.9) == []
    assert caught[0].filename == __file__


# ---- in a Trainer ----


class Noted:
    "Which Parameters learn, after each batch."

    def __init__(self):
        self.seen = []

    def batch_end(self, state):
        self.seen.append(len([p for p in state.model.parameters() if p.grad is not None]))


def make(*freezing, folder=None, seed=0, duration="30ba", **settings):
    mi.manual_seed(seed)
    x = np.random.default_rng(0).normal(size=(78, 7)).astype("float32")
    data = TensorDataset(x, (x.sum(axis=1) > 0).astype("int64"))
    model, settings["callbacks"] = network(), Noted()
    return Trainer(
        model, DataLoader(data, 8, shuffle=True), max_duration=duration, progress_bar=False,
        optimizers=optim.AdamW(model.parameters(), lr=0.01), lint=False, save_folder=folder,
        algorithms=[LayerFreezing(*freezing), GradientClipping("norm", 1.0)],
        save_interval="1ba", autoresume=folder is not None, **settings,
    )  # fmt: skip


def everything(trainer):
    "The bits of the model, of what the optimizer remembers, and who learns."
    state = trainer.state
    arrays = [t.numpy().tobytes() for t in state.model.state_dict().values()]
    for memory in state.optimizers[0].state_dict()["state"].values():
        arrays += [v if isinstance(v, int) else v.numpy().tobytes() for v in memory.values()]
    return arrays, learning(state.model)


@pytest.mark.parametrize("freezing, moments", [
    ((), [(18, 1), (21, 2), (24, 3), (27, 4)]), ((0.0, 1.0), [(6, 1), (12, 2), (18, 3), (24, 4)]),
    ((0.5, 1.0), [(18, 1), (21, 2), (24, 3), (27, 4)]), ((0.9, 0.1), []),
    ((0.4, 0.5), [(20, 1), (27, 2)]),
])  # fmt: skip
@pytest.mark.parametrize("duration", ["30ba", 3])
def test_layers_freeze_at_an_even_pace(freezing, moments, duration):
    logger = InMemoryLogger()
    trainer = make(*freezing, duration=duration, loggers=[logger])
    trainer.fit()
    assert logger.data.get("frozen_layers", []) == moments
    sizes, expected, frozen = [2, 2, 1, 2, 2], [], dict(moments)
    for batch in range(30):
        now = max((k for at, k in moments if at <= batch), default=0)
        expected.append(sum(sizes[now:]))
    assert trainer.state.callbacks[0].seen == expected and trainer.state.timestamp.batch == 30
    assert all(k < 5 for k in frozen.values())


def test_it_acts_where_it_says():
    matched = [event for event in Event if LayerFreezing().match(event, None)]
    assert matched == [Event.AFTER_LOAD, Event.BATCH_START]


def cut(folder, at):
    "A training of 30 batches that ends after `at` of them, as if it were killed."

    class Stop:
        def batch_end(self, state):
            if state.timestamp.batch == at:
                state.stop("cut")

    trainer = make(0.2, folder=folder)
    trainer.state.callbacks.append(Stop())
    trainer.fit()
    assert trainer.state.timestamp.batch == at
    return trainer


@pytest.mark.parametrize("at", [3, 11, 12, 19, 29])
def test_training_goes_on_bit_for_bit(at, tmp_path):
    straight = make(0.2)
    straight.fit()
    first = cut(tmp_path, at)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = make(0.2, folder=tmp_path, seed=4)
    assert everything(resumed) == everything(first)
    resumed.fit()
    assert everything(resumed) == everything(straight)


def test_what_is_frozen_stays_so_when_training_takes_longer():
    trainer = make(0.0)
    trainer.fit()
    assert trainer.state.algorithms[0].layers == 4
    trainer.fit("30ba")
    assert trainer.state.algorithms[0].layers == 4 and len(learning(trainer.state.model)) == 2
    assert len(trainer.state.optimizers[0].state) == 2
    assert trainer.state.timestamp.batch == 60


@pytest.mark.parametrize("at, frozen", [(3, 0), (13, 2)])
def test_one_may_go_back_and_what_others_froze_stays(at, frozen, tmp_path):
    trainer = make(0.0, folder=tmp_path)
    trainer.state.model[2][1].scale.requires_grad_(False)
    trainer.fit()
    assert trainer.state.algorithms[0].layers == 4
    trainer.state.model[3].bias.requires_grad_(False)
    trainer.load_checkpoint(tmp_path / f"ep{at // 10}-ba{at}.safetensors")
    expected = [path for path, _ in network().named_parameters()]
    expected = [path for path in expected if path not in ("2.1.scale", "3.bias")][2 * frozen :]
    assert learning(trainer.state.model) == expected


def test_batch_norm_goes_on_averaging():
    trainer = make(0.2)
    trainer.fit()
    norm = trainer.state.model[2][0]
    assert not norm.weight.requires_grad and norm.training
    assert int(norm.num_batches_tracked) == 30


@pytest.mark.parametrize("wrong, words", [
    ((-0.1,), "freeze_start is .* got -0.1"), ((1.0,), "freeze_start is .* got 1.0"),
    ((0.5, 0.0), "freeze_level is .* got 0.0"), ((0.5, 1.5), "freeze_level is .* got 1.5"),
])  # fmt: skip
def test_parts_are_parts(wrong, words):
    with pytest.raises(ValueError, match=words):
        LayerFreezing(*wrong)


def test_the_time_is_exact():
    method, model = LayerFreezing(0.4, 0.6), nn.Sequential(*(nn.Linear(1, 1) for _ in range(10)))
    state = State(model, optimizers=[], max_duration=Time("100ba"))
    frozen = []
    for batch in range(100):
        state.timestamp = Timestamp(batch=batch)
        method.apply(Event.BATCH_START, state)
        frozen.append(method.layers)
    assert frozen == [max(0, (batch - 40) // 10) for batch in range(100)]
