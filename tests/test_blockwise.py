"GyroPair: the same numbers as layer by layer, from fewer products."

import numpy as np
import pytest

from minima import nn
from minima.algorithms import replace
from minima.autograd import Tensor, op
from minima.autograd.tape import read_through
from minima.nn.blockwise import _by_blocks, relu_drop_linear
from minima.random import Generator, manual_seed
from minima.testing import gradcheck


def layers(hidden=40, outputs=3, p=0.5, block=8, tau=4, inputs=6, **options):
    manual_seed(0)
    drop = nn.GyroDropout(6, 1, p, 16, tau, block=block, generator=Generator(1), **options)
    return nn.Linear(inputs, hidden), nn.ReLU(), drop, nn.Linear(hidden, outputs)


def both(dtype="float64", **options):
    pair, row = nn.GyroPair(*layers(**options)), nn.Sequential(*layers(**options))
    for layer in (pair[0], row[0]):  # so that each hidden neuron is at work somewhere
        layer.bias.data = Tensor(np.linspace(-0.3, 0.3, layer.bias.size)[None], dtype="float32")
    return pair.to(dtype=dtype), row.to(dtype=dtype)


@pytest.fixture
def read():
    "The names of the rules and kernels that are read."
    names = []

    def around(function, rule):
        def reading(*args, **settings):
            names.append(rule.__name__)
            return function(*args, **settings)

        return reading

    before = read_through(around)
    yield names
    read_through(before)


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize(
    "options, batch",
    [
        (dict(), 16),
        (dict(), 10),
        (dict(), 3),
        (dict(), 1),
        (dict(), 0),
        (dict(hidden=37), 16),
        (dict(block=64), 16),
        (dict(p=0.9, block=5), 9),
        (dict(p=0.1, outputs=40), 9),
        (dict(p=1.0), 8),
        (dict(tau=1), 8),
    ],
)
def test_a_pair_computes_what_its_layers_do(options, batch, dtype, rtol, read):
    pair, row = both(dtype, **options)
    rng = np.random.default_rng(0)
    for _ in range(3):
        values = rng.normal(size=(batch, 6))
        g = Tensor(rng.normal(size=(batch, options.get("outputs", 3))), dtype=dtype)
        found = []
        for model in (pair, row):
            model.zero_grad()
            x = Tensor(values, dtype=dtype, requires_grad=True)
            read.clear()
            y = model(x)
            assert ("relu_drop_linear" in read) == (model is pair)
            y.backward(g)
            found.append([y.data, x.grad, *(p.grad for p in model.parameters())])
        for a, b in zip(*found):
            assert a.shape == b.shape and a.dtype == b.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    assert pair[2].schedule.iteration == row[2].schedule.iteration == 2


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("shape, p", [((1, 12), 0.25), ((12,), 0.5), ((1, 12), 1.0)])
def test_the_kernel_agrees_with_the_rule(shape, p, dtype, tolerance):
    rng = np.random.default_rng(1)
    x, w1, b1, w2, g = (
        rng.normal(size=s).astype(dtype) for s in ((9, 5), (5, 12), shape, (12, 4), (9, 4))
    )
    table = np.repeat(rng.random((3, 4)) < 0.5, 3, axis=1)
    table[:, 3:6] = False  # a block that nobody keeps
    rows = rng.integers(0, 3, 9)
    results = []
    for reading in (relu_drop_linear.rule, _by_blocks):
        y, *pullbacks = reading(np, x, w1, b1, w2, table, rows, block=3, p=p)
        for scale in (1, 2):  # a second walk back with another cotangent
            again = g * np.asarray(scale, dtype)
            results.append([y, *(pull(again) for pull in pullbacks)])
    for a, b in zip(results[0] + results[1], results[2] + results[3]):
        if a.shape == (9, 12):  # the rule leaves it to the engine to undo broadcasting
            a = a.sum(axis=0).reshape(shape)
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_to_second_order():
    pair, _ = both()
    pair[2].schedule.clock = "hand"
    x = np.random.default_rng(0).normal(size=(8, 6))
    assert gradcheck(pair, [x])
    weights = [pair[i].weight.data.numpy() for i in (0, 3)]
    table, rows = pair[2].masks(range(4), (40,)), np.arange(8) // 2

    def function(x, w1, w2):
        b1 = pair[0].bias.data
        return relu_drop_linear(x, w1, b1, w2, table, rows, block=8, p=0.5)

    assert gradcheck(function, [x, *weights], order=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda pair: pair.eval(),
        lambda pair: setattr(pair[2], "training", False),
        lambda pair: setattr(pair[2], "p", 0.0),
        lambda pair: setattr(pair[2], "block", 1),
        lambda pair: setattr(pair[2], "mask_dims", -1),
        lambda pair: setattr(pair[0], "bias", None),
        lambda pair: pair[1].register_forward_hook(lambda *_: None),
        lambda pair: pair[2].register_forward_pre_hook(lambda *_: None),
    ],
)
def test_where_something_stands_against_it_layers_are_called_one_by_one(change, read):
    pair, row = both()
    change(pair)
    change(row)
    x = Tensor(np.random.default_rng(0).normal(size=(8, 6)))
    assert np.array_equal(pair(x).data, row(x).data)
    assert "relu_drop_linear" not in read


def test_inputs_with_more_axes_and_errors_are_those_of_the_layers():
    pair, row = both()
    x = Tensor(np.random.default_rng(0).normal(size=(8, 2, 6)))
    assert np.array_equal(pair(x).data, row(x).data)
    for wrong in (Tensor(np.ones((8, 5))), Tensor(np.ones((8, 6)), dtype="float32")):
        messages = []
        for model in (pair, row):
            with pytest.raises(RuntimeError) as caught:
                model(wrong)
            messages.append(str(caught.value).replace("GyroPair", "Sequential"))
        assert messages[0] == messages[1]


def test_a_missing_second_bias():
    pair, row = both()
    pair[3].bias = row[3].bias = None
    x = Tensor(np.random.default_rng(0).normal(size=(8, 6)))
    np.testing.assert_allclose(pair(x).data, row(x).data, rtol=1e-12)


def test_one_subnetwork_alone_takes_the_short_cut_too(read):
    pair, row = both()
    x = Tensor(np.random.default_rng(0).normal(size=(8, 6)))
    for model in (pair.eval(), row.eval()):
        model[2].schedule.only = 5
    np.testing.assert_allclose(pair(x).data, row(x).data, rtol=1e-12)
    assert "relu_drop_linear" in read and pair[2].schedule.state.tolist()[1] == 0


def test_names_and_kinds():
    pair, row = both()
    assert [*pair.state_dict()] == [*row.state_dict()] and pair[:2].modules == pair.modules[:2]
    with pytest.raises(
        TypeError, match="expects Linear, ReLU, GyroDropout, Linear; got Linear, ReLU"
    ):
        nn.GyroPair(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(TypeError, match="got Linear, ReLU, Dropout, Linear"):
        nn.GyroPair(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(), nn.Linear(2, 2))


def test_a_pair_that_surgery_has_changed_is_a_row(read):
    pair, row = both()
    for model in (pair, row):
        replace(model, nn.GyroDropout, lambda old: nn.Identity())
    x = Tensor(np.random.default_rng(0).normal(size=(8, 6)))
    assert np.array_equal(pair(x).data, row(x).data) and "relu_drop_linear" not in read
    assert np.array_equal(pair.append(nn.ReLU())(x).data, row.append(nn.ReLU())(x).data)


@pytest.mark.parametrize("kernels", [True, False])
def test_a_hidden_neuron_exactly_at_zero_learns_nothing_as_in_its_layers(kernels):
    x, w2 = Tensor(np.ones((4, 3))), Tensor(np.ones((5, 2)))
    w1, b1 = (Tensor(np.zeros(shape), requires_grad=True) for shape in ((3, 5), (1, 5)))
    table, rows = Tensor(np.ones((1, 5), bool)), Tensor(np.zeros(4, int))
    function = relu_drop_linear if kernels else op(relu_drop_linear.rule)
    function(x, w1, b1, w2, table, rows, block=1, p=0.0).sum().backward()
    assert not w1.grad.numpy().any() and not b1.grad.numpy().any()
