"GyroSequential: the same numbers as layer by layer, from fewer products."

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

from minima import nn
from minima.algorithms import replace
from minima.autograd import Tensor, op
from minima.autograd.tape import read_through
from minima.backend import kernels_off
from minima.functional import apply_gyro_dropout
from minima.nn import blockwise
from minima.nn.blockwise import _by_tiles, relu_drop_chain
from minima.optim import SGD
from minima.random import Generator, manual_seed
from minima.testing import gradcheck


@pytest.fixture(autouse=True)
def small_tiles_are_worth_it(monkeypatch):
    monkeypatch.setattr(nn.GyroSequential, "worth", 0)


def layers(sizes=(6, 40, 3), p=0.5, block=8, tau=4, shared=True, scale="expected"):
    "Linear, ReLU, GyroDropout, ..., Linear."
    manual_seed(0)
    generator, members, plan = Generator(1), [], None
    for pair in zip(sizes, sizes[1:-1]):
        if plan is None or not shared:
            plan = nn.GyroSchedule(6, 1, 16, tau, generator=generator)
        drop = nn.GyroDropout(p=p, block=block, schedule=plan, scale=scale, generator=generator)
        members += nn.Linear(*pair), nn.ReLU(), drop
    return *members, nn.Linear(*sizes[-2:])


def both(dtype="float64", **options):
    short, row = nn.GyroSequential(*layers(**options)), nn.Sequential(*layers(**options))
    for model in (short, row):  # so that each hidden neuron is at work somewhere
        for layer in [*model][:-1:3]:
            biases = np.linspace(-0.3, 0.3, layer.bias.size)[None]
            layer.bias.data = Tensor(biases, dtype="float32")
    return short.to(dtype=dtype), row.to(dtype=dtype)


def batch(rows=8, features=6, dtype="float64"):
    return Tensor(np.random.default_rng(0).normal(size=(rows, features)), dtype=dtype)


@pytest.fixture
def read():
    "The names of the rules and kernels that are read, and the arrays' shapes."
    names = []

    def around(function, rule):
        def reading(*args, **settings):
            names.append(rule.__name__)
            return function(*args, **settings)

        return reading

    before = read_through(around)
    yield names
    read_through(before)


# ---- the same numbers ----


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize(
    "options, rows",
    [
        (dict(), 16),
        (dict(), 10),
        (dict(), 3),
        (dict(), 1),
        (dict(), 0),
        (dict(sizes=(6, 37, 3)), 16),
        (dict(block=64), 16),
        (dict(block=2), 16),
        (dict(p=1 / 65536), 8),
        (dict(p=0.9, block=5), 9),
        (dict(p=0.1, sizes=(6, 40, 40)), 9),
        (dict(p=1.0), 8),
        (dict(tau=1), 8),
        (dict(sizes=(6, 40, 32, 3)), 16),
        (dict(sizes=(6, 40, 32, 3), shared=False), 10),
        (dict(sizes=(6, 37, 23, 3), scale="measured"), 9),
        (dict(sizes=(6, 20, 30, 25, 3), block=10, tau=8), 21),
        (dict(sizes=(6, 20, 30, 3), block=10, p=0.95), 5),
        (dict(sizes=(6, 20, 30, 3), p=1.0), 5),
        (dict(sizes=(6, 20, 30, 3)), 0),
    ],
)
def test_it_computes_what_its_members_do(options, rows, dtype, rtol, read):
    short, row = both(dtype, **options)
    rng = np.random.default_rng(0)
    for _ in range(3):
        values = rng.normal(size=(rows, 6))
        g = Tensor(rng.normal(size=(rows, row[-1].out_features)), dtype=dtype)
        found = []
        for model in (short, row):
            model.zero_grad()
            x = Tensor(values, dtype=dtype, requires_grad=True)
            read.clear()
            y = model(x)
            assert read.count("relu_drop_chain") == (model is short)
            assert ("linear" in read) == (model is row)
            y.backward(g)
            found.append([y.data, x.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*found, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    assert short[2].schedule.iteration == row[2].schedule.iteration == 2


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("shape", [(1, 12), (12,)])
@pytest.mark.parametrize("scales", [(1.25, 2), (2, 0)])
def test_the_kernel_agrees_with_the_rule(shape, scales, dtype, tolerance):
    rng = np.random.default_rng(1)
    sizes = (9, 14), (14, 12), shape, (12, 7), (1, 7), (7, 4), (9, 4)
    *arrays, g = (rng.normal(size=s).astype(dtype) for s in sizes)
    arrays[0], arrays[3] = arrays[0][:, ::-1], np.asfortranarray(arrays[3])  # not in a row
    keeps = [rng.random((9, n)) < 0.5 for n in (4, 4)]
    keeps[0][:, 1] = False  # a block that nobody keeps
    keeps[1][3] = False  # a row that keeps nothing
    results, scales = [], np.asarray(scales, dtype)
    for reading in (relu_drop_chain.rule, _by_tiles):
        y, *pullbacks = reading(np, *arrays, *keeps, scales, blocks=(3, 2))
        assert len(pullbacks) == len(arrays)
        for scale in (1, 2):  # a second walk back with another cotangent
            again = g * np.asarray(scale, dtype)
            results.append([y, *(pull(again) for pull in pullbacks)])
    like = [results[0][0], *arrays] * 2
    for a, b, argument in zip(results[0] + results[1], results[2] + results[3], like, strict=True):
        if a.shape != argument.shape:  # the rule leaves it to the engine to undo broadcasting
            a = a.sum(axis=0).reshape(argument.shape)
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_to_second_order():
    short, _ = both(sizes=(6, 16, 12, 3))
    short[2].schedule.clock = "hand"
    x = batch()
    assert gradcheck(short, [x])
    keeps = [
        drop.masks(range(4), (n,))[np.arange(8) // 2, ::8] for drop, n in zip(short[2::3], (16, 12))
    ]
    arrays = [t.data.numpy() for layer in [*short][::3] for t in (layer.weight, layer.bias)][:-1]

    def function(*arrays):
        return relu_drop_chain(*arrays, *keeps, np.array([2, 1.25]), blocks=(8, 8))

    assert gradcheck(function, [x, *arrays], order=2)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_hidden_neuron_exactly_at_zero_learns_nothing_as_in_its_layers(kernels):
    x, w2 = Tensor(np.ones((4, 3))), Tensor(np.ones((5, 2)))
    w1, b1 = (Tensor(np.zeros(shape), requires_grad=True) for shape in ((3, 5), (1, 5)))
    function = relu_drop_chain if kernels else op(relu_drop_chain.rule)
    keep = Tensor(np.ones((4, 5), bool))
    function(x, w1, b1, w2, keep, np.ones(1), blocks=[1]).sum().backward()
    assert not w1.grad.numpy().any() and not b1.grad.numpy().any()


# ---- what is not computed, and what is not kept ----


def test_nothing_is_multiplied_that_is_dropped(monkeypatch):
    short, _ = both(sizes=(6, 16, 24, 3))
    drops, count = [*short][2::3], []
    pick = blockwise._pick

    def counting(a, runs):
        count.append(pick(a, runs))
        return count[-1]

    monkeypatch.setattr(blockwise, "_pick", counting)
    short(batch(12))
    chosen = short[2].schedule.chosen(0)
    first, second = (
        drop.masks(chosen, (n,))[np.arange(12) // 3, ::8] for drop, n in zip(drops, (16, 24))
    )
    needed = first.sum(axis=0), (first.T.astype(int) @ second).ravel(), second.sum(axis=0)
    assert [len(a) for a in count] == np.concatenate(needed).tolist()


def test_gradients_that_nobody_wants_are_not_computed(monkeypatch):
    short, _ = both(sizes=(6, 16, 24, 3))
    calls = []
    for name in ("_outer", "_backward"):
        function = getattr(blockwise, name)
        monkeypatch.setattr(
            blockwise, name, lambda *a, f=function, n=name: calls.append(n) or f(*a)
        )
    short(batch()).sum().backward()
    assert sorted(calls) == ["_backward"] * 2 + ["_outer"] * 3
    calls.clear()
    short[0].requires_grad_(False)
    short[3].requires_grad_(False)
    short(batch()).sum().backward()
    assert calls == ["_outer"]


def test_training_steps_and_gradients_that_go_to_their_homes():
    models = both(sizes=(6, 16, 24, 3))  # the kernel of a dense layer brings biases home, too
    for model, expected in zip(models, ([True, False] * 3, [True] * 6)):
        optimizer = SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(batch()) ** 2).sum().backward()
            at_home = [p._home is p.grad.array for p in model.parameters()]
            optimizer.step()
        assert at_home == expected
    for p, q in zip(*(model.parameters() for model in models)):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12, atol=1e-14)


def test_where_rows_meet_is_found_once_a_round():
    short, _ = both(sizes=(6, 16, 24, 3))
    blockwise._meetings.cache_clear()
    for _ in range(4):  # the period has two iterations
        short(batch())
    found = blockwise._meetings.cache_info()
    assert short[2].schedule.period == 1 or found.hits > 0
    assert found.misses <= 3 * len({short[2].schedule.chosen(t) for t in range(4)})


def test_memory_is_freed_without_the_collector_of_cycles():
    short, _ = both(sizes=(6, 16, 24, 3))
    gc.collect()
    gc.disable()
    try:
        for walk in (True, False):
            x = batch()
            gone = weakref.ref(x.array)
            y = short(x)
            if walk:
                y.sum().backward()
            del x, y
            assert gone() is None
    finally:
        gc.enable()


def test_writing_into_weights_before_walking_back_is_noticed():
    short, _ = both()
    y = short(batch())
    short[0].weight.data[...] = 0
    with pytest.raises(RuntimeError, match="written|changed|modified"):
        y.sum().backward()


# ---- where something stands against it ----


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.eval(),
        lambda model: setattr(model[2], "training", False),
        lambda model: setattr(model[2], "p", 0.0),
        lambda model: setattr(model[2], "p", 0.499995 / 65536),
        lambda model: setattr(model[2], "block", 1),
        lambda model: setattr(model[2], "mask_dims", -1),
        lambda model: setattr(model[0], "bias", None),
        lambda model: model[0].register_forward_hook(lambda *_: None),
        lambda model: model[1].register_forward_hook(lambda *_: None),
        lambda model: model[2].register_forward_pre_hook(lambda *_: None),
        lambda model: model[3].register_full_backward_hook(lambda *_: None),
        lambda model: setattr(model[0], "forward", model[0].forward),
        lambda model: setattr(model, "worth", 8 * 8 * 8 + 1),
        lambda model: setattr(model[0], "__class__", type("MyLinear", (nn.Linear,), {})),
        lambda model: replace(model, nn.ReLU, lambda old: nn.Tanh()),
        lambda model: replace(model, nn.GyroDropout, lambda old: nn.Identity()),
    ],
)
def test_where_something_stands_against_it_layers_are_called_one_by_one(change, read):
    short, row = both()
    change(short)
    change(row)
    assert np.array_equal(short(batch()).data, row(batch()).data)
    assert "relu_drop_chain" not in read


def test_a_tile_is_worth_it_by_its_real_size(read):
    short, _ = both()
    short.worth = 8 * 8 * 8
    short(batch())
    assert "relu_drop_chain" in read
    wide, _ = both(block=64)
    wide.worth = 8 * 64 * 64
    read.clear()
    wide(batch())
    assert "relu_drop_chain" not in read
    wide.worth = 8 * 40 * 40
    wide(batch())
    assert "relu_drop_chain" in read


@pytest.mark.parametrize(
    "change, chains, linears",
    [
        (lambda model: None, 1, 0),
        (lambda model: setattr(model[2], "training", False), 1, 1),
        (lambda model: setattr(model[5], "training", False), 1, 1),
        (lambda model: setattr(model[3], "bias", None), 1, 1),
        (lambda model: model[3].register_forward_hook(lambda *_: None), 0, 3),
        (lambda model: model[6].register_forward_hook(lambda *_: None), 1, 1),
        (lambda model: model.insert(3, nn.Identity()), 1, 1),
        (lambda model: model.insert(0, nn.Linear(6, 6)), 1, 1),
        (lambda model: model.append(nn.ReLU()), 1, 0),
    ],
)
def test_what_can_be_computed_together_is(change, chains, linears, read):
    short, row = both(sizes=(6, 16, 24, 3))
    for model in (short, row):
        manual_seed(3)
        change(model.float())
    x = batch(dtype="float32")
    read.clear()
    y = short(x)
    assert (read.count("relu_drop_chain"), read.count("linear")) == (chains, linears)
    np.testing.assert_allclose(y.data, row(x).data, rtol=1e-4, atol=1e-5)


def test_the_rest_is_applied_as_by_a_sequential(read):
    members = nn.Linear(6, 6), nn.ReLU(), *layers((6, 16, 3)), nn.ReLU()
    found = []
    for kind in (nn.Sequential, nn.GyroSequential):
        read.clear()
        kind(*members)(batch(dtype="float32"))
        found.append([name for name in read if name in ("linear", "relu", "relu_drop_chain")])
    assert found == [["linear"] * 3, ["linear", "relu_drop_chain", "relu"]]


def test_rows_after_rows():
    sizes = (6, 16, 5)
    short = nn.GyroSequential(*layers(sizes), nn.Tanh(), *layers((5, 16, 3))).double()
    row = nn.Sequential(*layers(sizes), nn.Tanh(), *layers((5, 16, 3))).double()
    np.testing.assert_allclose(short(batch()).data, row(batch()).data, rtol=1e-12)


@pytest.mark.parametrize("place", ["0.weight", "0.bias", "3.weight"])
def test_dtypes_that_differ_are_left_to_the_layers(place, read):
    found = []
    for model in both():
        p = model.get_parameter(place)
        p.data = p.data.astype("float32")
        try:
            found.append(model(batch()).tolist())
        except RuntimeError as error:
            found.append(str(error).replace("GyroSequential", "Sequential"))
    assert found[0] == found[1] and "relu_drop_chain" not in read
    assert isinstance(found[0], list) == (place == "0.bias")


def test_inputs_of_other_kinds_and_errors_are_those_of_the_layers():
    short, row = both()
    x = Tensor(np.random.default_rng(0).normal(size=(8, 2, 6)))
    assert np.array_equal(short(x).data, row(x).data)
    plain = batch().numpy()
    assert np.array_equal(short(plain).data, row(plain).data)
    for wrong in (Tensor(np.ones((8, 5))), Tensor(np.ones((8, 6)), dtype="float32")):
        messages = []
        for model in (short, row):
            with pytest.raises(RuntimeError) as caught:
                model(wrong)
            messages.append(str(caught.value).replace("GyroSequential", "Sequential"))
        assert messages[0] == messages[1]
    for model in (short, row):
        model[3] = nn.Linear(39, 3).double()
        with pytest.raises(RuntimeError, match="expects 39 features"):
            model(batch())


def test_without_a_kernel_members_are_called_one_by_one(read):
    short, row = both()
    with kernels_off():
        assert np.array_equal(short(batch()).data, row(batch()).data)
    assert "relu_drop_chain" not in read


def test_a_missing_last_bias():
    short, row = both()
    short[3].bias = row[3].bias = None
    np.testing.assert_allclose(short(batch()).data, row(batch()).data, rtol=1e-12)


def test_one_subnetwork_alone_takes_the_short_cut_too(read):
    short, row = both()
    for model in (short.eval(), row.eval()):
        model[2].schedule.only = 5
    np.testing.assert_allclose(short(batch()).data, row(batch()).data, rtol=1e-12)
    assert "relu_drop_chain" in read and short[2].schedule.state.tolist()[1] == 0


def test_half_precision_is_computed_as_everywhere():
    short, row = both("float16")
    x = batch(dtype="float16")
    y = short(x)
    assert y.dtype == "float16"
    np.testing.assert_allclose(y.data.numpy(), row(x).data.numpy(), rtol=4e-3, atol=4e-3)


# ---- a Sequential like any other ----


def test_names_copies_and_parts():
    short, row = both()
    assert [*short.state_dict()] == [*row.state_dict()]
    assert short[:2].modules == short.modules[:2]
    named = nn.GyroSequential(dict(zip("abcd", layers())))
    assert [name for name, _ in named.named_children()] == [*"abcd"]
    for again in (copy.deepcopy(short), pickle.loads(pickle.dumps(short))):
        assert type(again) is nn.GyroSequential
        assert np.array_equal(again(batch()).data, copy.deepcopy(short)(batch()).data)
    assert nn.GyroSequential()(3) == 3
    assert nn.GyroSequential(lambda x: x + 1, nn.Identity())(3) == 4


# ---- by surgery ----


def ordinary(*tail):
    manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5, Generator(0)), nn.Linear(16, 24), nn.ReLU(),
        nn.Dropout(0.25, Generator(0)), nn.Linear(24, 3), *tail,
    )  # fmt: skip


def test_surgery_lets_a_sequential_skip_what_is_dropped(read):
    model = nn.Sequential(ordinary(nn.ReLU()), nn.Sequential(nn.Linear(3, 3), nn.Dropout()))
    params, keys, inner, called = model.parameters(), [*model.state_dict()], model[0], []
    inner.register_forward_hook(lambda *_: called.append(1))
    inner.eval()
    optimizer = SGD(params, lr=0.1)
    settings = dict(sigma=16, tau=4, generator=Generator(2), optimizers=optimizer)
    assert apply_gyro_dropout(model, 10, 1, **settings, block=8) is model
    kinds = [type(part) for part in (model, model[0], model[1])]
    assert kinds == [nn.Sequential, nn.GyroSequential, nn.Sequential]
    assert model[0] is inner and not inner.training and model.training
    assert all(a is b for a, b in zip(model.parameters(), params, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert {*keys} <= {*model.state_dict()}
    model.train()(batch(dtype="float32"))
    assert "relu_drop_chain" in read and called == [1]
    assert inner[2].schedule.iteration == 0 and inner[2].schedule is inner[5].schedule


def test_surgery_at_the_root_counts_iterations_once():
    model = ordinary()
    assert apply_gyro_dropout(model, 10, 1, sigma=16, tau=4, block=8) is model
    assert type(model) is nn.GyroSequential
    for _ in range(3):
        model(batch(dtype="float32"))
    assert model[2].schedule.iteration == 2


def test_surgery_finds_a_row_behind_other_members():
    model = nn.Sequential(nn.Flatten(), *ordinary())
    assert type(apply_gyro_dropout(model, 10, 1, sigma=16, tau=4, block=8)) is nn.GyroSequential


def test_surgery_leaves_alone_what_cannot_skip():
    class Mine(nn.Sequential):
        pass

    model = nn.Sequential(
        Mine(*ordinary()), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Dropout())
    )
    apply_gyro_dropout(model, 10, 1, sigma=16, tau=4, block=8)
    assert [type(part) for part in (model, *model)] == [nn.Sequential, Mine, nn.Sequential]
    plain = apply_gyro_dropout(ordinary(), 10, 1, sigma=16, tau=4)
    assert type(plain) is nn.Sequential
