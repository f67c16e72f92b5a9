"Dropout, a sum and a layer norm in one operation: against PyTorch, against the three, and kept."

import os
import copy
import itertools
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

from minima import nn
from minima import operators as ops
from minima.autograd import ShapeError, Tensor, grad
from minima.autograd.tape import _kept, _owner, read_through
from minima.backend import kernels_off
from minima.nn import functional as F
from minima.operators import fused
from minima.operators.fused import (
    _parts,
    dropout_add_layer_norm,
    dropout_mask,
    norm_and_sum,
    register_parts,
    rows_parts,
)
from minima.random import Generator, keep_mask, random_bits
from minima.testing import gradcheck, vs_torch

try:
    if os.environ.get("MINIMA_NUMBA") == "0":
        raise ImportError("an import would register compiled kernels")
    from minima.kernels import norms
except ImportError:
    norms = None
KERNELS = [pytest.param(fused, id="numpy")]
KERNELS += [pytest.param(norms, id="numba")] if norms else []
LARGEST = 2**64 - 1


def words(seed, offset):
    return np.array([seed, offset], dtype=np.uint64)


def some(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# ---- the mask ----


@pytest.mark.parametrize("seed, offset", [(0, 0), (5, 6), (LARGEST, LARGEST), (2**32, 2**40 + 1)])
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(0,), (1,), (8,), (3, 5), (2, 3, 7), ()])
def test_the_rules_mask_is_that_of_keep_mask(shape, p, seed, offset):
    expected = keep_mask(shape, p, seed, offset)
    for mode in (kernels_off, nullcontext):
        with mode():
            found = dropout_mask(Tensor(words(seed, offset)), shape=shape, p=p).numpy()
        assert found.dtype == bool and found.shape == shape and (found == expected).all()


def test_a_number_at_the_threshold_is_kept_and_p_is_rounded():
    draw, bits = Tensor(words(5, 6)), random_bits(5, 6, 64)
    for i, shift in itertools.product(range(16), (-0.4, 0.0, 0.4, 0.6)):
        p = (int(bits[i]) + shift) / 65536
        for mode in (kernels_off, nullcontext):
            with mode():
                found = dropout_mask(draw, shape=(64,), p=p).numpy()
            assert (found == keep_mask(64, p, 5, 6)).all() and found[i] == (shift < 0.5)


def test_ten_million_draws_keep_what_they_should():
    n = 10**7
    for p, seed in ((0.1, 1), (0.5, 2)):
        dropped = n - np.count_nonzero(keep_mask(n, p, seed, 0))
        p = round(p * 65536) / 65536
        assert abs(dropped - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def test_neighbouring_seeds_offsets_and_rows_are_not_correlated():
    n = 2**20
    base = keep_mask(n, 0.5, 7, 7) * 2.0 - 1
    others = {"seed": keep_mask(n, 0.5, 8, 7), "offset": keep_mask(n, 0.5, 7, 8)}
    others |= {f"row of {dim}": np.roll(keep_mask(n, 0.5, 7, 7), dim) for dim in (1, 8, 512)}
    for name, other in others.items():
        assert abs((base * (other * 2.0 - 1)).sum()) < 4.5 * n**0.5, name


# ---- kernels and the rule ----


def made_by(kernel):
    "The parts of the operation, made anew of the functions of a module of kernels."
    return rows_parts(kernel._forward, kernel._backward)


SHAPES = [(7, 5), (3, 4, 9), (1, 1), (5, 1), (150, 13), (6,), (2, 700)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype, rtol", [("float32", 2e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_gives_the_numbers_of_the_rule(shape, dtype, rtol, kernel, monkeypatch):
    parts = made_by(kernel)
    monkeypatch.setattr(fused, "_BLOCK", 64)  # several blocks, and rows longer than a block
    x, residual, g, h = (some(shape, dtype, i) for i in range(4))
    weight, bias = some(shape[-1:], dtype, 5), some(shape[-1:], dtype, 6)
    for r, w, b, p, both in itertools.product(
        (None, residual), (None, weight), (None, bias), (0.0, 0.3, 1.0), (False, True)
    ):
        args = x, r, w, b, words(5, 6) if p else None, p, 1e-5
        y, z, pulls = _parts(np, *args)
        found_y, found_z, found = parts(np, *args, both)
        pairs = [(y, found_y), (z, found_z)][: 1 + both]
        for pull, other, a in zip(pulls, found, args):
            if a is not None:
                expected, gradient = pull(g, h if both else None), other(g, h if both else None)
                if a.ndim < expected.ndim:  # the engine undoes broadcasting
                    expected = expected.sum(axis=tuple(range(expected.ndim - 1)))
                pairs.append((expected, gradient))
        for a, b in pairs:
            scale = max(1, abs(a).max())
            assert a.shape == b.shape and a.dtype == b.dtype == dtype
            np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_writes_into_nothing_that_it_is_given_and_repeats_itself(kernel):
    parts = made_by(kernel)
    arrays = [some((9, 6), seed=i) for i in range(4)] + [some(6), some(6, seed=1), words(3, 4)]
    before = copy.deepcopy(arrays)
    x, residual, g, h, weight, bias, draw = arrays
    y, z, pulls = parts(np, x, residual, weight, bias, draw, 0.4, 1e-5, True)
    first = [pull(g, h).copy() for pull in pulls]
    again = [pull(g, h) for pull in pulls]
    others = [pull(g * 2, h * 2) for pull in reversed(pulls)]
    for a, b, c in zip(first, again, reversed(others)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, 2 * a, rtol=1e-12)
    assert all((a == b).all() for a, b in zip(arrays, before))


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_does_not_fit_a_kernel_is_left_to_the_rule(kernel):
    parts = made_by(kernel)
    x, row, number = some((4, 6)), some(6), np.float64(2.0)
    strange = [
        (x, row, None, None), (x, None, some((4, 6)), None), (x, None, None, number),
        (x, x.astype("float32"), None, None), (x.astype(int), None, None, None),
        (x, None, row.astype("float32"), None), (x[:0], x[:0], row, row),
        (x[:, :0], None, None, None),
    ]  # fmt: skip
    for args in strange:
        with np.errstate(all="ignore"):
            expected = _parts(np, *args, words(1, 2), 0.5, 1e-5)
            found = parts(np, *args, words(1, 2), 0.5, 1e-5, True)
        for a, b in zip(expected[:2], found[:2]):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_need_not_lie_one_behind_the_other(kernel):
    parts = made_by(kernel)
    x, g = some((6, 8)), some((8, 6), seed=1).T
    fixed = x.copy()
    fixed.flags.writeable = False
    for a in (x[:, ::2], x.T, x[::-1], np.broadcast_to(x[:1], (6, 8)), fixed):
        expected = _parts(np, a, None, None, None, None, 0.0, 1e-5)
        found = parts(np, a, None, None, None, None, 0.0, 1e-5, True)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12)
        if a.shape == g.shape:
            np.testing.assert_allclose(found[2][0](g), expected[2][0](g), atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_those_of_the_cotangents_that_were_asked_with(kernel):
    x, residual, g, h = (some((9, 6), seed=i) for i in range(4))
    pulls = made_by(kernel)(np, x, residual, None, None, None, 0.0, 1e-5, True)[2]
    g2, h3 = 2 * g, 3 * h  # the same objects each time, as in a walk back
    asked = [(0, g, h), (0, g, h), (1, g2, h), (0, g2, h3), (1, g2, h3), (0, g2, h), (0, g, None)]
    for i, up, other in asked:
        expected = _parts(np, x, residual, None, None, None, 0.0, 1e-5)[2][i](up, other)
        np.testing.assert_allclose(pulls[i](up, other), expected, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_a_draw_nothing_is_dropped_whatever_p_is(kernel):
    x = some((9, 6))
    expected, found = (
        parts(np, x, None, None, None, None, p, 1e-5, True)[0]
        for parts, p in ((made_by(kernel), 0.0), (made_by(kernel), 0.4))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_that_are_registered_have_the_defaults_of_the_rule(kernel):
    before = dropout_add_layer_norm.readings.kernels.known["cpu"]
    x, draw = Tensor(some((4, 6)) * 0.01), Tensor(words(1, 2))
    try:
        register_parts(made_by(kernel), "cpu")
        assert dropout_add_layer_norm.readings.kernels.known["cpu"] is not before
        y = dropout_add_layer_norm(x, draw=draw)
        np.testing.assert_allclose(y, F.layer_norm(x, (6,)), rtol=1e-10)
        y, z = norm_and_sum(x, draw=draw, p=0.5)
        np.testing.assert_allclose(y, F.layer_norm(z, (6,)), rtol=1e-10)
    finally:
        register_parts(made_by(norms or fused), "cpu", *["recorder"] * (norms is not None))


@pytest.mark.skipif(norms is None, reason="numba is not installed, so nothing is compiled")
@pytest.mark.parametrize("shape, axis", [((4, 6), -1), ((4, 6), (1,)), ((3, 4, 5), (-2, -1)),
                                         ((3, 4, 5), (0, 1, 2)), ((4, 6), 0), ((3, 4, 5), (0, 2)),
                                         ((0, 6), -1), ((4, 6), (-1, 0)), ((64, 4096), -1)],
                         ids=str)  # fmt: skip
def test_the_compiled_norm_gives_the_numbers_of_its_rule(shape, axis):
    x, g = some(shape), some(shape, seed=1)
    axes = {i % len(shape) for i in (axis if isinstance(axis, tuple) else (axis,))}
    sizes = [n if i in axes else 1 for i, n in enumerate(shape)]
    sizes = sizes[min(axes) :]
    for w, b in itertools.product((None, some(sizes, seed=2)), (None, some(sizes, seed=3))):
        expected = ops.normalize.rule(np, x, w, b, axis=axis, eps=1e-5)
        found = norms.normalize(np, x, w, b, axis=axis, eps=1e-5)
        np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
        for a, pull, other in zip((x, w, b), expected[1:], found[1:]):
            if a is not None:
                p, q = pull(g), other(g)
                p, q = (_summed(t, a.shape) for t in (p, q))
                assert p.shape == q.shape
                np.testing.assert_allclose(q, p, atol=1e-12)


@pytest.mark.skipif(norms is None, reason="numba is not installed, so nothing is compiled")
@pytest.mark.parametrize(
    "p, threshold",
    [(1 / 65536, 1), (0.1, 6554), (1 / 3, 21845), (0.9, 58982), (1 - 1e-9, 65535), (1.0, 65535)],
)
def test_a_number_is_dropped_if_16_bits_are_below_a_threshold(p, threshold):
    draw = words(1, 2)
    found, *numbers = norms._as_numbers((p, draw))
    assert found is draw and numbers == [threshold, 1 / (1 - p) if p < 1 else 0.0]


def _summed(g, shape):
    "What the engine makes of the gradient `g` of something broadcast from `shape`."
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1)
    return g.sum(axis=axes, keepdims=True)


@pytest.mark.parametrize("kernel", [pytest.param(None, id="rule"), *KERNELS])
def test_numbers_far_from_zero_have_the_variance_that_they_have(kernel):
    parts = made_by(kernel) if kernel else lambda *args: _parts(*args[:-1])
    x = (1000 + 0.01 * some((3, 700))).astype("float32")
    wide = x.astype("float64")
    expected = (wide - wide.mean(1, keepdims=True)) / wide.std(1, keepdims=True)
    y, _, _ = parts(np, x, None, None, None, None, 0.0, 1e-12, False)
    assert abs(y - expected).max() < 0.02


@pytest.mark.parametrize("mode", [kernels_off, nullcontext])
def test_what_is_not_said_drops_nothing_and_eps_is_that_of_layer_norm(mode):
    x, draw = Tensor(some((4, 6)) * 0.01), Tensor(words(1, 2))
    with mode():
        for eps, how in ((1e-5, {}), (0.1, {"eps": 0.1})):
            expected = F.layer_norm(x, (6,), eps=eps)
            y, z = norm_and_sum(x, draw=draw, **how)
            for found in (dropout_add_layer_norm(x, draw=draw, **how), y):
                np.testing.assert_allclose(found, expected, rtol=1e-10)
            np.testing.assert_array_equal(z, x)


# ---- gradients ----


def test_gradients_to_second_order_with_one_value_and_with_two():
    args = [some((3, 5)), some((3, 5), seed=1), some(5, seed=2), some(5, seed=3)]
    draw = Tensor(words(5, 6))
    for pair in (draw, draw.numpy()):
        one = lambda *a, pair=pair: dropout_add_layer_norm(*a, pair, p=0.4)
        assert gradcheck(one, args, order=2)
    two = lambda *a: ops.multiply(*norm_and_sum(*a, draw, p=0.4))
    assert gradcheck(two, args, order=2)
    assert gradcheck(lambda *a: norm_and_sum(*a, draw, p=0.4)[1], args, order=2)


def test_each_of_two_values_gets_its_gradient_alone_together_and_again():
    x, g, h = (Tensor(some((4, 6), seed=i), requires_grad=i == 0) for i in range(3))
    composed = lambda: (ops.normalize(x, axis=(-1,), eps=1e-5), x * 1)
    for mode in (kernels_off, nullcontext):
        with mode():
            y, z = norm_and_sum(x, eps=1e-5)
            for came in ({0: g}, {1: h}, {0: g, 1: h}, {0: h}):
                values, others = ([both[i] for i in came] for both in ((y, z), composed()))
                (expected,) = grad(others, x, [*came.values()])
                (found,) = grad(values, x, [*came.values()], retain_graph=True)
                np.testing.assert_allclose(found, expected, atol=1e-12)


def test_values_of_half_precision_are_computed_wide():
    for dtype, rtol in (("float16", 2e-3), ("bfloat16", 2e-2)):
        if dtype == "bfloat16":
            pytest.importorskip("ml_dtypes")
        x = Tensor(some((4, 700)) * 10).to(dtype).requires_grad_()
        wide = x.detach().to("float32").requires_grad_()
        found = norm_and_sum(x, draw=Tensor(words(1, 2)), p=0.3)
        expected = norm_and_sum(wide, draw=Tensor(words(1, 2)), p=0.3)
        for a, b in zip(found, expected):
            assert a.dtype == x.dtype
            np.testing.assert_allclose(a.detach().to("float32"), b.detach(), rtol=rtol, atol=1e-4)
        (a,), (b,) = (
            grad(y.sum() + (z * z).sum(), t) for t, (y, z) in ((x, found), (wide, expected))
        )
        np.testing.assert_allclose(a.to("float32"), b, rtol=3 * rtol, atol=1e-2)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("shape", [(2, 5), (3, 4, 9), (1, 1), (40, 130)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.7])
def test_value_and_gradients_are_torchs_with_the_same_mask(shape, p, dtype, atol, torch):
    arrays = [some(shape, dtype, i) for i in (0, 1)] + [some(shape[-1:], dtype, i) for i in (2, 3)]
    quantised = round(p * 65536) / 65536
    keep = torch.tensor(keep_mask(shape, p, 11, 3))

    def theirs(x, residual, weight, bias):
        z = x * keep / (1 - quantised) + residual
        return torch.nn.functional.layer_norm(z, shape[-1:], weight, bias)

    def ours(x, residual, weight, bias):
        return F.dropout_add_layer_norm(x, weight, bias, residual, p, seed=(11, 3))

    vs_torch(ours, theirs, arrays, dtype=dtype, verbose=False)


# ---- what is kept ----


def bytes_kept(result, inputs):
    "The bytes of memory that the walk back from `result` needs, but for those of the `inputs`."
    waiting, owners = [result], {}
    while waiting:
        for a, pull in waiting.pop()._edges:
            owners |= {id(_owner(array)): _owner(array) for _, array in _kept(pull)}
            waiting += [] if a.is_leaf else [a]
    return sum(a.nbytes for a in owners.values() if not any(a is _owner(b.array) for b in inputs))


@pytest.mark.parametrize("mode", [kernels_off, nullcontext])
@pytest.mark.parametrize("size", [4, 8])
def test_between_forward_and_backward_two_numbers_per_row_are_kept(size, mode):
    shape = 64, 50
    args = [Tensor(some(s, f"f{size}"), requires_grad=True) for s in (shape, shape, (50,), (50,))]
    draw = Tensor(words(1, 2))
    with mode():
        y = dropout_add_layer_norm(*args, draw, p=0.1)
        assert bytes_kept(y, [*args, draw]) == 2 * size * 64
        y, z = norm_and_sum(*args, draw, p=0.1)
        assert bytes_kept(y, [*args, draw, z]) <= 2 * size * 64 + size  # and the token
    keep = Tensor(keep_mask(shape, 0.1, 1, 2))
    composed = ops.normalize(ops.dropout(args[0], keep, p=0.1) + args[1], axis=(-1,), eps=1e-5)
    assert bytes_kept(composed, args) > keep.size + size * keep.size


# ---- the function ----


def test_the_mask_that_is_returned_is_the_one_that_was_used():
    x, residual = Tensor(some((6, 9), "float32")), Tensor(some((6, 9), "float32", 1))
    weight, bias = Tensor(some(9, "float32", 2)), Tensor(some(9, "float32", 3))
    for how in (dict(seed=5), dict(seed=(5, 2)), dict(generator=Generator(1)), {}):
        y, z, keep = F.dropout_add_layer_norm(
            x, weight, bias, residual, 0.25, prenorm=True, return_mask=True, **how
        )
        expected = x.numpy() * keep.numpy() / 0.75 + residual.numpy()
        np.testing.assert_allclose(z, expected, atol=1e-6)
        unfused = F.layer_norm(Tensor(expected), (9,), weight, bias)
        assert abs(y.numpy() - unfused.numpy()).max() <= 1e-6
        assert keep.dtype == "bool" and 0 < keep.numpy().mean() < 1


def test_draws_come_from_where_they_should():
    x = Tensor(np.ones((8, 8), "float32"))
    mask = lambda **how: F.dropout_add_layer_norm(x, p=0.5, return_mask=True, **how)[1].numpy()
    assert (mask(seed=3) == mask(seed=3)).all() and (mask(seed=3) == mask(seed=(3, 0))).all()
    assert (mask(seed=3) != mask(seed=4)).any() and (mask(seed=3) != mask(seed=(3, 1))).any()
    generator = Generator(9)
    assert (mask(generator=generator) == keep_mask((8, 8), 0.5, 9, 0)).all()
    assert generator.get_state() == {"seed": 9, "offset": 1}
    for how in (dict(p=0.0), dict(training=False), dict(p=1e-7)):
        F.dropout_add_layer_norm(x, generator=generator, **how)
        _, keep = F.dropout_add_layer_norm(x, generator=generator, return_mask=True, **how)
        assert keep.numpy().all() and generator.get_state()["offset"] == 1
    assert not mask(seed=1)[..., :0].size and F.dropout_add_layer_norm(x[:0], seed=1).shape == (
        0,
        8,
    )


def test_where_all_is_dropped_the_bias_is_left_and_the_norm_of_the_residual():
    x, bias = Tensor(some((3, 4))), Tensor(some(4, seed=1))
    assert (F.dropout_add_layer_norm(x, None, bias, p=1.0).numpy() == bias.numpy()).all()
    r = Tensor(some((3, 4), seed=2))
    expected = F.layer_norm(r, (4,), None, bias)
    np.testing.assert_allclose(F.dropout_add_layer_norm(x, None, bias, r, p=1.0), expected, 1e-12)


@pytest.mark.parametrize(
    "how, error, text",
    [
        (dict(x=1.0), ShapeError, "at least one axis, got a single number"),
        (dict(weight=Tensor(some(5))), ShapeError, "expects 5 features in the last axis"),
        (dict(bias=Tensor(some((1, 4)))), ShapeError, r"got \(3, 4\)"),
        (dict(residual=some(4)), ShapeError, r"a residual of \(3, 4\), got \(4,\)"),
        (dict(residual=some((3, 4), "float32")), RuntimeError, "expects float32, got float64"),
        (dict(weight=Tensor(some(4, "float32"))), RuntimeError, "float32"),
        (dict(p=1.5), ValueError, "probability"),
        (dict(eps=0), ValueError, "eps > 0"),
        (dict(seed=1, generator=Generator(1)), TypeError, "not both"),
        (dict(generator=1), TypeError, "must be a Generator"),
    ],
)
def test_errors_say_what_does_not_fit(how, error, text):
    with pytest.raises(error, match=text):
        F.dropout_add_layer_norm(**{"x": Tensor(some((3, 4)))} | how)


# ---- layers ----


@pytest.fixture
def read():
    "The names of the rules and kernels that are read."
    names = []

    def around(function, rule):
        return lambda *args, **how: names.append(rule.__name__) or function(*args, **how)

    before = read_through(around)
    yield names
    read_through(before)


def test_the_layer_is_the_pair_in_its_settings_its_state_and_its_numbers(read):
    layer = nn.FusedDropoutLayerNorm(6, 0.25, 1e-3)
    pair = nn.Module()
    pair.dropout, pair.layer_norm = nn.Dropout(0.25), nn.LayerNorm(6, 1e-3)
    pair.layer_norm.weight.data = Tensor(some(6, "float32"))
    assert [*layer.state_dict()] == [*pair.state_dict()] == ["layer_norm.weight", "layer_norm.bias"]
    layer.load_state_dict(pair.state_dict())
    x, g = Tensor(some((2, 3, 6), "float32"), requires_grad=True), some((2, 3, 6), "float32", 1)
    for training in (True, False):
        layer.train(training), pair.train(training)
        layer.dropout.generator, pair.dropout.generator = Generator(4), Generator(4)
        read.clear()
        found = grad(y := layer(x), [x, *layer.parameters()], g)
        assert read == ["dropout_add_layer_norm"]
        expected = grad(z := pair.layer_norm(pair.dropout(x)), [x, *pair.parameters()], g)
        for a, b in zip((y.detach(), *found), (z.detach(), *expected)):
            assert abs(a.numpy() - b.numpy()).max() <= 2e-6
    assert layer.dropout.p == 0.25 and layer.layer_norm.eps == 1e-3
    plain = nn.FusedDropoutLayerNorm(6, elementwise_affine=False, dtype="float64")
    assert plain.state_dict() == {} and not plain.layer_norm.elementwise_affine
    assert plain(Tensor(some((2, 6)))).dtype == "float64"


def test_prenorm_hands_out_the_sum():
    layer = nn.FusedDropoutLayerNorm(6, 0.5, prenorm=True, dtype="float64")
    x, r = Tensor(some((4, 6))), Tensor(some((4, 6), seed=1))
    y, z = layer(x, r)
    np.testing.assert_allclose(y.detach(), layer.layer_norm(z).detach(), atol=1e-12)
    assert "prenorm=True" in repr(layer) and "prenorm" not in repr(nn.FusedDropoutLayerNorm(6))
    dropped = (z.detach() - r).numpy() / x.numpy()
    np.testing.assert_allclose(np.unique(np.round(dropped, 9)), [0, 2])
    layer.eval()
    np.testing.assert_array_equal(layer(x, r)[1].detach(), x + r)
    np.testing.assert_array_equal(layer(x)[1].detach(), x)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.dropout.register_forward_hook(lambda *_: None),
        lambda layer: layer.layer_norm.register_forward_pre_hook(lambda *_: None),
        lambda layer: setattr(layer, "dropout", nn.Identity()),
        lambda layer: setattr(layer, "layer_norm", nn.LayerNorm((2, 3, 6))),
        lambda layer: setattr(layer, "layer_norm", nn.LayerNorm1d(6)),
    ],
)
@pytest.mark.parametrize("prenorm", [False, True])
def test_members_that_are_watched_or_replaced_are_called(change, prenorm, read):
    layer = nn.FusedDropoutLayerNorm(6, prenorm=prenorm).eval()
    change(layer)
    x, r = (Tensor(some((2, 3, 6), "float32", i)) for i in (0, 1))
    for residual in (None, r):
        read.clear()
        found = layer(x, residual)
        assert "dropout_add_layer_norm" not in read and "_norm_and_sum" not in read
        z = x if residual is None else x + residual
        np.testing.assert_array_equal(found[1].detach() if prenorm else z, z)
        y = found[0] if prenorm else found
        np.testing.assert_array_equal(y.detach(), layer.layer_norm(z).detach())


def test_a_fused_layer_norm_is_a_layer_norm(torch):
    for shape, sizes in (((4, 6), 6), ((2, 3, 4, 6), (4, 6)), ((3, 1), (1,)), ((0, 6), 6)):
        layer, other = nn.FusedLayerNorm(sizes, 1e-4), torch.nn.LayerNorm(sizes, 1e-4)
        vs_torch(layer, other, [some(shape)], dtype="float32", verbose=False)
        bare, other = nn.FusedLayerNorm(sizes, bias=False), torch.nn.LayerNorm(sizes, bias=False)
        vs_torch(bare, other, [some(shape)], dtype="float32", verbose=False)
    with pytest.raises(ShapeError, match="LayerNorm expects 6 features"):
        nn.FusedLayerNorm(6)(Tensor(some((2, 5), "float32")))
    with pytest.raises(ShapeError, match="last axes"):
        nn.FusedLayerNorm((4, 6))(Tensor(some((2, 24), "float32")))


def test_defaults_lists_and_sizes():
    layer, rows = nn.FusedDropoutLayerNorm(4), some((3, 4), "float32")
    assert (
        layer.dropout.p == 0.1 and layer.layer_norm.eps == 1e-5 and layer.layer_norm.bias.size == 4
    )
    expected = F.dropout_add_layer_norm(rows, residual=rows, p=0.1, seed=1)
    found = F.dropout_add_layer_norm(rows.tolist(), residual=rows.tolist(), seed=1)
    np.testing.assert_array_equal(found, expected)
    for module in (layer.eval(), nn.FusedLayerNorm(4)):
        np.testing.assert_array_equal(module(rows.tolist()).detach(), module(Tensor(rows)).detach())
    for bare in (
        nn.FusedDropoutLayerNorm(5, elementwise_affine=False),
        nn.FusedDropoutLayerNorm(5),
    ):
        with pytest.raises(ShapeError, match="LayerNorm expects 5 features"):
            bare(rows)
    broken = np.full((2, 4), np.nan, "float32")
    assert F.dropout_add_layer_norm(broken, p=0.0, return_mask=True)[1].numpy().all()


def test_members_that_are_called_drop_what_they_should():
    layer, x, r = (
        nn.FusedDropoutLayerNorm(4, 1.0, prenorm=True),
        Tensor(some((3, 4), "float32")),
        1.5,
    )
    layer.dropout.register_forward_hook(lambda *_: None)
    assert not layer(x)[1].numpy().any() and (layer(x, Tensor(np.float32(r)))[1].numpy() == r).all()


# ---- the examples that the layer is documented with ----


def test_the_documented_examples_run_with_the_imports_changed():
    import minima as torch

    model = nn.FusedDropoutLayerNorm(dim=512)
    output = model(torch.randn(1, 512))
    assert output.shape == (1, 512)

    class SampleModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(512, 512)
            self.fused_dropout_layernorm = nn.FusedDropoutLayerNorm(512)

        def forward(self, x):
            x = self.linear(x)
            x = self.fused_dropout_layernorm(x)
            return x

    model = SampleModel()
    output = model(torch.randn(10, 512))
    assert output.shape == (10, 512)
    output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())

    model = nn.FusedDropoutLayerNorm(512, dropout=0.2, eps=1e-6, elementwise_affine=False)
    output = model(torch.randn(1, 512))
    assert output.shape == (1, 512) and abs(output.numpy().mean()) < 1e-6


@pytest.mark.skipif(norms is None, reason="nothing is compiled")
def test_what_is_compiled_prevails_whichever_operation_comes_first():
    code = """
from minima import nn, operators as ops, randn
from minima.nn import functional as F
nn.FusedDropoutLayerNorm(4)(randn(3, 4)), F.layer_norm(randn(3, 4), 4), F.softmax(randn(3, 4))
from minima.kernels import cpu, norms
for op, kernel in ((ops.normalize, norms.normalize), (ops.softmax, cpu.softmax)):
    print(op.readings.kernels.known["cpu"] is kernel)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "True"]
