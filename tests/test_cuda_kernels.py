"Each CUDA kernel, without a GPU: run on the CPU beside its rule, and compiled for GPUs."

import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from compile_kernels import ARCHITECTURES, compiled, compiler, counted, disassembler

import minima as mi
from minima import backend, nn
from minima.backend import Backend, numpy_backend
from minima.kernels import cuda, launches
from minima.operators import fused
from minima.operators.fused import _parts
from minima.random import keep_mask, random_bits
from minima.tensors import _widened
from minima.testing.emulator import ORDERS, Emulator, can_emulate

xp = numpy_backend.xp
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is missing")
DTYPES = {"float32": 3e-6, "float16": 6e-4, "bfloat16": 5e-3}  # with what relative precision
DRAW = np.array([2**33 + 7, 2**35 + 1], "uint64")


@pytest.fixture
def launcher(monkeypatch):
    "Kernels run on the CPU, and what they do not write is NaN."
    if not can_emulate():
        pytest.skip("there is no g++, so CUDA kernels cannot run on the CPU")
    monkeypatch.setattr(xp, "empty", poisoned)
    monkeypatch.setattr(xp, "empty_like", lambda a: poisoned(a.shape, a.dtype))
    with launches.launching_by(launches.EmulatedLauncher()) as launcher:
        yield launcher


def poisoned(shape, dtype="float64"):
    "An array whose bits are all 1: NaN, if it has floats."
    a = np.zeros(shape, dtype)
    a.reshape(-1).view("uint8")[...] = 0xFF
    return a


def as_dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def normal(rng, shape, dtype):
    return np.asarray(rng.normal(size=shape), as_dtype(dtype))


def close(found, expected, precision):
    "Assert that arrays agree up to `precision` of the size of the largest number."
    assert found.shape == expected.shape
    found, expected = found.astype("float64"), expected.astype("float64")
    assert np.isfinite(found).all(), "something was not written"
    size = max(1.0, np.abs(expected).max(initial=0))
    assert np.abs(found - expected).max(initial=0) <= precision * size


def off(a):
    "A copy of `a` that begins where packs cannot be loaded."
    memory = np.empty(a.size + 1, a.dtype)
    memory[1:] = a.reshape(-1)
    return memory[1:].reshape(a.shape)


# ---- which there are ----


def test_the_kernels_are_found_where_operations_look_for_them():
    names = "cross_entropy dropout_by_draw gelu linear log_softmax normalize relu sigmoid silu"
    for name in (*names.split(), "softmax", "tanh"):
        assert getattr(cuda.ops, name).readings.kernels.find("cuda") is getattr(cuda, name)
    assert cuda.ops.dropout_add_layer_norm.readings.kernels.find("cuda")
    assert cuda._adam.kernels.find("cuda") is cuda.adam
    assert cuda._sgd.kernels.find("cuda") is cuda.sgd


def test_kernels_get_halves_as_they_are(launcher):
    a = np.ones((2, 8), "float16")
    read = _widened(cuda.softmax, {a.dtype}, True)
    assert read(xp, a)[0].dtype == "float16"
    read(xp, a)[1](a)
    assert launcher.names and all("__half" in name for name in launcher.names)
    norms = cuda.ops.dropout_add_layer_norm, fused._norm_and_sum, cuda.ops.normalize
    for op in norms:
        assert op.readings.kernels.find("cuda").takes_halves
    y, *_ = cuda.normalize(xp, a, axis=0, eps=1e-5)  # which goes by the rule
    assert y.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_what_kernels_do_not_know_goes_by_the_rule(launcher, dtype):
    a = np.random.default_rng(0).normal(size=(3, 4)).astype(dtype)
    y, pull = cuda.softmax(xp, a, axis=0)
    np.testing.assert_allclose(y, cuda.ops.softmax.rule(np, wide(a), axis=0)[0], rtol=1e-5)
    cuda.linear(xp, a.astype("float64"), a.T.astype("float64"), np.ones(3))
    cuda.cross_entropy(xp, a.astype("float64"), np.array([0, 1, 2]))
    assert not launcher.names


def test_rows_that_are_more_or_longer_than_a_thread_can_count_go_by_the_rule():
    "No memory is taken: all rows are one, seen again and again."
    one, shapes = np.float32(1), [(2**30, 4), (4, 2**30), (2**31 + 8, 1), (3, 2**33)]
    for shape in shapes:
        x, labels = np.broadcast_to(one, shape), np.broadcast_to(np.int64(0), shape[:1])
        assert not cuda._in_rows(x) and not cuda._has_labels(x, labels)
        assert not fused._fit(x, None, None, None, cuda._MOST)
    x = np.broadcast_to(one, (2**30 - 1, 2**30 - 1))
    assert cuda._in_rows(x) and fused._fit(x, None, None, None, cuda._MOST)


@pytest.mark.parametrize("shape, axis, fits", [
    ((3, 4), -1, True), ((3, 4), 1, True), ((3, 4), 0, False), ((3, 4), -2, False), ((), -1, False),
    ((4,), 0, True), ((2, 3, 4), 2, True), ((2, 3, 4), 1, False), ((0, 4), -1, False),
    ((3, 0), -1, False),
])  # fmt: skip
def test_rows_are_along_the_last_axis(shape, axis, fits):
    x, labels = np.zeros(shape, "float32"), np.zeros(shape[:-1], "int64")
    assert cuda._in_rows(x, axis) == cuda._has_labels(x, labels, axis) == fits
    if axis == -1:
        assert cuda._in_rows(x) == fits
    assert not cuda._in_rows(x.astype("float64"), axis)
    assert not cuda._has_labels(x, np.zeros((2, *labels.shape), "int64"), axis)
    assert cuda._are_rows(x, labels) == (cuda._in_rows(x) and len(shape) == 2)
    assert not cuda._are_rows(x, np.zeros(7, "int64"))


@pytest.mark.parametrize("shapes, activation, fits", [
    (((5, 3), (3, 4), (4,)), None, True), (((5, 3), (3, 4), (1, 4)), "gelu", True),
    (((3,), (3, 4), (4,)), "relu", True), (((2, 5, 3), (3, 4), (1, 1, 4)), None, True),
    (((5, 3), (3, 4), (4,)), "sine", False), (((5, 3), (3, 4), (1,)), None, False),
    (((5, 3), (3, 4), (5, 1)), None, False), (((3,), (3, 4), (1, 4)), None, False),
    (((5, 3), (3, 1), ()), None, False), (((5, 2), (3, 4), (4,)), None, False),
    (((5, 0), (0, 4), (4,)), None, False), (((0, 3), (3, 4), (4,)), None, False),
    (((5, 3), (2, 3, 4), (4,)), None, False), (((5, 3), (3, 0), (0,)), None, False),
    (((5, 4), (4, 4), (4, 1)), None, False),
])  # fmt: skip
def test_a_bias_is_a_row(shapes, activation, fits):
    arrays = [np.zeros(shape, "float32") for shape in shapes]
    assert cuda._has_row(*arrays, activation=activation) == fits
    assert not cuda._has_row(*arrays[:2], activation=activation)
    for i in range(3):
        mixed = [a.astype("float16") if i == j else a for j, a in enumerate(arrays)]
        assert not cuda._has_row(*mixed, activation=activation)


SHAPES_OF = [
    (launches.norm_forward("float32", 10, 200, 4),
     ("norm_forward<float, 8, false>", (3,), (32, 4), 32)),
    (launches.norm_forward("float32", 10, 256, 4),
     ("norm_forward<float, 8, false>", (3,), (32, 4), 32)),
    (launches.norm_forward("float32", 9, 257, 1), ("norm_forward_any<float>", (9,), (96, 1), 24)),
    (launches.norm_forward("float16", 9, 264, 8),
     ("norm_forward<__half, 16, false>", (3,), (32, 4), 32)),
    (launches.norm_forward("float32", 9, 1024, 4),
     ("norm_forward<float, 16, false>", (5,), (64, 2), 32)),
    (launches.norm_forward("bfloat16", 10, 2048, 8),
     ("norm_forward<__nv_bfloat16, 32, true>", (5,), (64, 2), 32)),
    (launches.norm_forward("float32", 9, 4096, 4),
     ("norm_forward<float, 16, true>", (9,), (256, 1), 64)),
    (launches.norm_forward("float32", 9, 8192, 4),
     ("norm_forward<float, 16, true>", (9,), (512, 1), 128)),
    (launches.norm_forward("float16", 9, 2048, 8),
     ("norm_forward<__half, 16, false>", (9,), (128, 1), 32)),
    (launches.norm_forward("float16", 9, 1536, 8),
     ("norm_forward<__half, 16, false>", (9,), (96, 1), 24)),
    (launches.norm_forward("float16", 8, 1024, 8),
     ("norm_forward<__half, 32, true>", (2,), (32, 4), 32)),
    (launches.norm_forward("float32", 9, 1536, 4),
     ("norm_forward<float, 16, true>", (9,), (96, 1), 24)),
    (launches.norm_backward("float32", 9, 4608, 4, 132),
     ("norm_backward<float, 16, true>", (9,), (288, 1), 55368)),
    (launches.norm_backward("float32", 999, 4608, 4, 132),
     ("norm_backward<float, 16, true>", (132,), (288, 1), 55368)),
    (launches.norm_forward("float32", 9, 8196, 4),
     ("norm_forward_any<float>", (9,), (1024, 1), 256)),
    (launches.norm_forward("float32", 9, 129, 1), ("norm_forward_any<float>", (9,), (64, 1), 16)),
    (launches.norm_backward("float32", 10, 200, 4, 132, False),
     ("norm_backward<float, 8, false>", (2,), (32, 8), 16448)),
    (launches.norm_backward("float32", 10, 200, 4, 132),
     ("norm_backward<float, 8, false>", (2,), (32, 8), 24640)),
    (launches.norm_backward("float16", 9999, 512, 8, 132),
     ("norm_backward<__half, 16, false>", (264,), (32, 8), 24640)),
    (launches.norm_backward("float32", 9999, 1024, 4, 132),
     ("norm_backward<float, 16, false>", (264,), (64, 4), 49216)),
    (launches.norm_backward("float32", 9999, 4096, 4, 132, False),
     ("norm_backward<float, 16, true>", (264,), (256, 1), 32832)),
    (launches.norm_backward("float32", 9999, 8192, 4, 132),
     ("norm_backward<float, 16, true>", (132,), (512, 1), 98432)),
    (launches.norm_backward("float16", 9999, 8192, 8, 132),
     ("norm_backward<__half, 16, true>", (132,), (512, 1), 49280)),
    (launches.norm_backward("float32", 9999, 8196, 4, 132),
     ("norm_backward_any<float>", (264,), (1024, 1), 256)),
    (launches.norm_backward("float32", 3, 13, 1, 132),
     ("norm_backward_any<float>", (3,), (32, 1), 8)),
    (launches.add_parts("float16", 33), ("add_parts<__half>", (2,), (32, 32), 4096)),
    (launches.over_rows("softmax_forward", "float32", 9, 128, 1, "true"),
     ("softmax_forward<float, 1, true>", (3,), (32, 4), 8)),
    (launches.over_rows("softmax_forward", "float32", 9, 129, 1, "true"),
     ("softmax_forward<float, 1, true>", (9,), (64, 1), 16)),
    (launches.over_rows("softmax_backward", "float16", 9, 1032, 8, "false"),
     ("softmax_backward<__half, 8, false>", (9,), (64, 1), 16)),
    (launches.over_rows("cross_entropy_forward", "float32", 9, 50257, 1),
     ("cross_entropy_forward<float, 1>", (9,), (1024, 1), 256)),
    (launches.mean_of("float32"), ("mean_of<float>", (1,), (1024,), 256)),
    (launches.bend("bend_forward", "float32", "relu", 1, 10**6, 4, 132),
     ("bend_forward<float, Relu, 4>", (977, 1), (256, 1), 4096)),
    (launches.bend("bend_backward", "float32", "relu", 1, 3, 1, 132),
     ("bend_backward<float, Relu, 1>", (1, 1), (4, 1), 16)),
    (launches.bend("bend_backward", "float16", None, 100, 520, 8, 132),
     ("bend_backward<__half, Identity, 8>", (3, 13), (32, 8), 8192)),
    (launches.bend("bend_forward", "float32", "gelu by tanh", 10**6, 16, 4, 132),
     ("bend_forward<float, GeluByTanh, 4>", (1, 1056), (4, 64), 4096)),
    (launches.bend("bend_forward", "float32", "silu", 10**6, 17, 1, 132),
     ("bend_forward<float, Silu, 1>", (1, 1056), (32, 8), 1024)),
    (launches.bend("bend_forward", "float32", "tanh", 2, 10**6, 1, 1),
     ("bend_forward<float, Tanh, 1>", (31250, 1), (32, 8), 1024)),
    (launches.flat("adam", "float32", 1025, 4), ("adam<float, 4>", (2,), (256,), 0)),
    (launches.flat("dropout", "bfloat16", 256, 1), ("dropout<__nv_bfloat16, 1>", (1,), (256,), 0)),
]  # fmt: skip


@pytest.mark.parametrize("shape, expected", SHAPES_OF, ids=lambda s: s[0])
def test_how_many_threads_there_are(shape, expected):
    assert shape == expected


# ---- norms ----


def norm_args(shape, dtype, given, p, seed=0):
    "What `_parts` takes: x, residual, weight, bias, draw, p, eps."
    rng = np.random.default_rng(seed)
    x, residual = normal(rng, (2, *shape), dtype)
    weight, bias = normal(rng, (2, shape[-1]), dtype)
    residual, weight, bias = (
        a if name in given else None for name, a in (("r", residual), ("w", weight), ("b", bias))
    )
    return x, residual, weight, bias, DRAW if p else None, p, 1e-5


def wide(a):
    return a.astype("float64") if getattr(a, "dtype", None) in map(as_dtype, DTYPES) else a


def compare_norm(args, wants_z, precision, seed=1):
    "Assert that the kernels agree with the rule, forward and backward; returns what they made."
    x = args[0]
    rng = np.random.default_rng(seed)
    g, h = (normal(rng, x.shape, x.dtype.name) for _ in range(2))
    h = h if wants_z else None
    y, z, pulls = cuda._norm_parts(xp, *args, wants_z)
    found = [y, z, *(pull(g, h) for pull in pulls)]
    y, z, pulls = _parts(np, *map(wide, args[:4]), *args[4:])
    expected = [y, z, *(pull(wide(g), wide(h)) for pull in pulls)]
    flat = lambda a: a.reshape(-1, x.shape[-1]).sum(axis=0)
    expected[4:] = map(flat, expected[4:])
    precisions = [precision] * 4 + [precision * 4] * 2
    if args[1] is None:  # then nobody asks for this
        found[3] = None
    for mine, rule, how in zip(found, expected, precisions, strict=True):
        if mine is not None:
            assert mine.dtype == x.dtype
            close(mine, rule, how)
    return [a for a in found if a is not None]


WIDTHS = {1: None, 7: None, 256: 1, 504: 1, 1024: 2, 2000: 4, 4096: 8, 8192: 16, 8200: None}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", WIDTHS)
def test_norms_of_all_widths(launcher, cols, dtype):
    args = norm_args((3, cols), dtype, "rwb", 0.25)
    compare_norm(args, False, DTYPES[dtype])
    for name in launcher.names[:2]:
        assert ("any" in name) == (WIDTHS[cols] is None)
    shape = launches.norm_backward(dtype, 3, cols, launches.pack(dtype), 3)
    assert WIDTHS[cols] in (None, shape.block[0] / 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given, p", [("", 0.0), ("rwb", 0.25)])
@pytest.mark.parametrize("cols", [512, 1024, 1536, 8192])
def test_rows_of_which_each_thread_has_all_its_numbers(launcher, cols, given, p, dtype):
    for wants_z in (False, True):
        args = norm_args((8, cols), dtype, given, p)
        compare_norm(args, wants_z, DTYPES[dtype] * (4 if wants_z else 1))
    forward, backward = (
        [name for name in launcher.names if way in name] for way in ("_forward<", "_backward<")
    )
    of_four_packs = cols % (128 * launches.pack(dtype)) == 0
    assert forward and all(("true" in name) == of_four_packs for name in forward)
    assert backward and all("true" in name for name in backward)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("given", ["", "r", "w", "rb", "rwb"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (2, 9, 64), (13, 33)])
def test_norms_with_and_without(launcher, shape, given, p, dtype):
    for wants_z in (False, True):
        args = norm_args(shape, dtype, given, p)
        compare_norm(args, wants_z, DTYPES[dtype] * (4 if wants_z else 1))


@pytest.mark.parametrize("cols", [24, 64, 256, 512, 1000, 2048])
def test_no_order_of_threads_matters(launcher, cols):
    launcher.orders = ORDERS
    compare_norm(norm_args((9, cols), "float32", "rwb", 0.25), True, 3e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_norms_of_few_and_many_rows(launcher, rows):
    for cols in (12, 13, 128):
        compare_norm(norm_args((rows, cols), "float32", "rwb", 0.25), False, 3e-6)


def test_a_norm_of_a_row_far_from_zero(launcher):
    "The mean is as exact as if it had been made twice."
    for cols in (44, 65, 1000):
        x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(3, cols))).astype("float32")
        y, *_ = cuda.normalize(xp, x, axis=-1, eps=0.0)
        wide = x.astype("float64")
        wide -= wide.mean(axis=-1, keepdims=True)
        close(y, wide / wide.std(axis=-1, keepdims=True), 3e-3)  # half a unit of the mean
        equal = np.repeat(np.random.default_rng(1).normal(size=(20, 1)), cols, axis=1)
        y, *_ = cuda.normalize(xp, equal.astype("float32"), axis=-1, eps=1e-12)
        assert not y.any()


@pytest.mark.parametrize("cols", [40, 41])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_norm_is_that_of_the_sum_as_it_is_stored(launcher, cols, dtype):
    rng = np.random.default_rng(0)
    x, residual = normal(rng, (2, 3, cols), dtype) / as_dtype(dtype).type(8)
    y, z, _ = cuda._norm_parts(xp, x + x.dtype.type(16), residual, None, None, None, 0, 1e-5, True)
    centred = wide(z) - wide(z).mean(axis=1, keepdims=True)
    close(y, centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5), DTYPES[dtype])


def test_arrays_that_are_not_aligned_go_number_by_number(launcher):
    args = norm_args((4, 64), "float32", "rwb", 0.25)
    both = [compare_norm(args, False, 3e-6)]
    for i in range(4):
        names, moved = len(launcher.names), list(args)
        moved[i] = off(args[i])
        both.append(compare_norm(moved, False, 3e-6))
        assert ("any" in launcher.names[names]) == (i < 2)  # short rows are rather copied
    for a, b in zip(both[0], both[1]):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape, axis", [((4, 6), -1), ((4, 6), (0, 1)), ((2, 3, 5), (1, 2))])
def test_normalize_over_last_axes(launcher, shape, axis):
    rng = np.random.default_rng(0)
    sizes = shape[1:] if axis in (-1, (1, 2)) else shape
    x, g = rng.normal(size=(2, *shape)).astype("float32")
    weight, bias = rng.normal(size=(2, *sizes)).astype("float32")
    args, how = (x, weight, bias), dict(axis=axis, eps=1e-5)
    y, *pulls = cuda.normalize(xp, *args, **how)
    expected, *rules = cuda.ops.normalize.rule(np, *map(wide, args), **how)
    close(y, expected, 3e-6)
    for a, pull, rule in zip(args, pulls, rules):
        d = rule(wide(g))
        found = pull(g)
        d = d.reshape(-1, *found.shape).sum(axis=0) if found.shape != d.shape else d
        assert found.shape == a.shape
        close(found, d, 1e-5)


# ---- chance ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (8, 3), (513,), (5, 7, 31), (64, 128), (6000,)])
@pytest.mark.parametrize("p", [0.25, 0.75, 65535 / 65536])
def test_masks_are_those_of_the_cpu(launcher, shape, p, dtype):
    x = np.ones(shape, as_dtype(dtype))
    y, pull = cuda.dropout_by_draw(xp, x, DRAW, p=p)
    keep = keep_mask(shape, p, *map(int, DRAW))
    assert np.array_equal(y != 0, keep)
    assert np.array_equal(y, (keep / (1 - p)).astype("float32").astype(y.dtype))
    assert np.array_equal(pull(x), y)


def test_bits_that_equal_the_threshold_are_kept(launcher):
    x, bits = np.ones(64, "float32"), random_bits(*map(int, DRAW), 64)
    for p in [*bits[:64:9] / 65536, *(bits[:64:9] + 0.6) / 65536]:
        y, _ = cuda.dropout_by_draw(xp, x, DRAW, p=p)
        assert np.array_equal(y != 0, keep_mask(64, p, *map(int, DRAW)))


@pytest.mark.parametrize("cols", [8, 12, 13, 256, 2048, 9000])
def test_masks_of_norms_are_those_of_the_cpu(launcher, cols):
    x, g = np.random.default_rng(0).normal(size=(2, 5, cols)).astype("float32")
    _, _, pulls = cuda._norm_parts(xp, x, x, None, None, DRAW, 0.5, 1e-5, False)
    by_x, by_residual = pulls[0](g), pulls[1](g)
    keep = keep_mask(x.shape, 0.5, *map(int, DRAW))
    assert np.array_equal(by_x, np.where(keep, by_residual * 2, 0))


@pytest.mark.parametrize("p", [1e-6, 0.25, 1 - 1e-6, 1.0])
def test_dropout_of_no_number_is_none_and_of_a_tiny_chance_scales(launcher, p):
    x = np.ones((2, 16), "float32")
    x[0], x[1, 3:6] = np.nan, (np.inf, -np.inf, -2)
    with np.errstate(invalid="ignore"):
        for a in (x, off(x)):
            expected, pull = cuda.ops.dropout_by_draw.rule(np, x, DRAW, p=p)
            found, mine = cuda.dropout_by_draw(xp, a, DRAW, p=p)
            for one, other in ((found, expected), (mine(x), pull(x))):
                np.testing.assert_array_equal(one, other)
                assert np.array_equal(np.signbit(one[1, 6:]), np.signbit(other[1, 6:]))
            y, z, _ = cuda._norm_parts(xp, a, None, None, None, DRAW, p, 1e-5, True)
            np.testing.assert_array_equal(z, expected)
            assert np.isnan(y).all()


# ---- softmax and cross-entropy ----


def compare(name, arrays, settings, precision, g=None):
    "Assert that the kernel called `name` agrees with its rule; returns all that it made."
    rule = getattr(cuda.ops, name).rule
    y, *pulls = getattr(cuda, name)(xp, *arrays, **settings)
    expected, *rules = rule(np, *map(wide, arrays), **settings)
    expected = np.asarray(expected)
    assert y.dtype == arrays[0].dtype
    close(y, expected, precision)
    g = normal(np.random.default_rng(1), y.shape, y.dtype.name) if g is None else g
    found = [y]
    for a, pull, by_rule in zip(arrays, pulls, rules):
        d, mine = np.asarray(by_rule(wide(g))), pull(g)
        d = d.reshape(-1, *mine.shape).sum(axis=0) if d.shape != mine.shape else d
        assert mine.shape == a.shape and mine.dtype == a.dtype
        close(mine, d, precision * 4)
        found.append(mine)
    return found


SHAPES = [(1, 1), (3, 7), (2, 3, 64), (70, 10), (2, 1000), (3, 513), (9, 4104), (16,)]


@pytest.mark.parametrize("cols", [100, 1000, 9000])
def test_softmax_of_rows_far_below_zero(launcher, cols):
    "Lanes that have no warp to speak for do not speak of 0."
    a = (np.random.default_rng(0).normal(size=(3, cols)) - 1000).astype("float32")
    compare("softmax", [a], {"axis": -1}, 3e-6)
    compare("cross_entropy", [a, np.array([0, 5, 99])], {}, 3e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_and_its_logarithm(launcher, name, shape, dtype):
    a = normal(np.random.default_rng(0), shape, dtype) * as_dtype(dtype).type(3)
    compare(name, [a], {"axis": -1}, DTYPES[dtype])
    assert len(launcher.names) == 2
    compare(name, [off(a)], {"axis": a.ndim - 1}, DTYPES[dtype])
    names = len(launcher.names)
    compare(name, [a], {}, DTYPES[dtype])
    assert len(launcher.names) == names + 2  # the last axis is meant if none is named


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (70, 10), (2, 1000), (3, 513), (5, 4104)])
def test_cross_entropy(launcher, shape, dtype):
    rng = np.random.default_rng(0)
    x, labels = normal(rng, shape, dtype), rng.integers(0, shape[1], shape[0])
    for a in (x, off(x)):
        compare("cross_entropy", [a, labels], {}, DTYPES[dtype])
    compare("cross_entropy", [x, labels.astype("int32")], {}, DTYPES[dtype])


def test_a_label_that_is_no_class_is_read_nowhere(launcher):
    x = np.zeros((3, 4), "float32")
    for label in (-1, 4, 10**12):
        loss, pull = cuda.cross_entropy(xp, x, np.array([0, label, 3]))
        assert np.isnan(loss) and loss.shape == ()
        assert np.isfinite(pull(np.array(1, "float32"))).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_infinities_and_nan_go_where_the_rule_has_them(launcher, name):
    a = np.random.default_rng(0).normal(size=(5, 12)).astype("float32")
    a[0, 3], a[1, 2], a[2, 5], a[3] = -np.inf, np.nan, np.inf, -np.inf
    for b in (a, off(a)):
        with np.errstate(invalid="ignore"):
            expected, _ = getattr(cuda.ops, name).rule(np, b)
        found, _ = getattr(cuda, name)(xp, b)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---- activations ----

BENDS = [name for name in launches.BENDS if name]


def run_bend(name, a, g):
    how = {"approximate": "tanh"} if name == "gelu by tanh" else {}
    return compare(name.partition(" ")[0], [a], how, DTYPES[a.dtype.name], g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3, 8), (1024,), (5, 1001), ()])
@pytest.mark.parametrize("name", BENDS)
def test_activations(launcher, name, shape, dtype):
    rng = np.random.default_rng(0)
    a, g = (normal(rng, shape, dtype) for _ in range(2))
    run_bend(name, a, g)
    run_bend(name, off(a), g)


@pytest.mark.parametrize("name", BENDS)
def test_activations_of_infinities_and_nan_are_those_of_the_rule(launcher, name):
    a = np.array([np.nan, np.inf, -np.inf, 1, 0, -0.0, 1e-45, -3e38], "float32")
    op, how = getattr(cuda.ops, name.partition(" ")[0]), {}
    if name == "gelu by tanh":
        how["approximate"] = "tanh"
    with np.errstate(all="ignore"):
        expected, by_rule = op.rule(np, a, **how)
        for b in (a, off(a)):
            found, pull = getattr(cuda, op.rule.__name__)(xp, b, **how)
            np.testing.assert_allclose(found, expected, 3e-6)
            np.testing.assert_allclose(pull(a), by_rule(a), 3e-6)


@pytest.mark.parametrize("name", BENDS)
def test_activations_far_out(launcher, name):
    a = np.array([-200, -90, -20, -6, -1e-3, 0, 1e-3, 6, 20, 90, 200], "float32")
    run_bend(name, a, np.ones_like(a))
    with np.errstate(invalid="ignore"):
        assert np.isnan(getattr(cuda, name.partition(" ")[0])(xp, a * np.nan)[0]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "sigmoid", "tanh"])
@pytest.mark.parametrize(
    "shape, bias", [((5, 3), (4,)), ((2, 5, 3), (1, 8)), ((70, 3), (257,)), ((3,), (4,))]
)
def test_linear(launcher, shape, bias, activation, dtype):
    rng = np.random.default_rng(0)
    shapes = shape, (shape[-1], bias[-1]), bias
    arrays = [(rng.integers(-4, 5, s) / 2).astype(as_dtype(dtype)) for s in shapes]  # exact sums
    compare("linear", arrays, {"activation": activation}, DTYPES[dtype] * 2)
    assert len(launcher.names) == 3  # one forward, two backward, whoever asks


# ---- arrays that do not lie in order ----


def apart(a):
    "The numbers of `a`, of which neighbours in memory are in other rows, or are not its own."
    return np.asfortranarray(a) if a.ndim > 1 else np.repeat(a, 2)[::2]


WORKS = {
    "softmax": ([(4, 6)], {"axis": -1}), "log_softmax": ([(4, 6)], {"axis": -1}),
    "relu": ([(4, 6)], {}), "gelu": ([(4, 6)], {}),
    "linear": ([(4, 3), (3, 6), (6,)], {"activation": "silu"}),
    "cross_entropy": ([(4, 6), (4,)], {}), "surprise": ([(4, 6), (4,)], {"axis": -1}),
    "dropout_by_draw": ([(4, 6)], {"p": 0.25}), "normalize": ([(4, 8), (8,), (8,)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
def test_arrays_that_do_not_lie_in_order_are_brought_into_it(launcher, name):
    shapes, settings = WORKS[name]
    rng, op = np.random.default_rng(0), getattr(cuda, name)
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    if name in ("cross_entropy", "surprise"):
        arrays[1] = rng.integers(0, 6, 4)
    if name == "dropout_by_draw":
        arrays.append(DRAW)
    if name == "normalize":
        settings = {"axis": -1, "eps": 1e-5}
    y, *pulls = op(xp, *arrays, **settings)
    found, *others = op(xp, *map(apart, arrays), **settings)
    np.testing.assert_allclose(found, y, 1e-6)
    g = rng.normal(size=y.shape).astype("float32")
    for pull, other in zip(pulls, others, strict=True):
        np.testing.assert_allclose(other(apart(g) if g.ndim else g), pull(g), 1e-5, 1e-6)
    assert launcher.names


# ---- steps of optimizers ----


def steps(kind, read, start, gradients, amsgrad=False, as_arrays=False, **settings):
    "The parameter and all that is remembered after a step for each of `gradients`."
    p = start.copy()
    m, v, largest = (np.zeros_like(p) for _ in range(3))
    lr = np.array(0.05) if as_arrays else 0.05
    for t, g in enumerate(gradients, 1):
        if kind == "adam":
            settings["largest"] = largest if amsgrad else None
            read(p, g, m, v, np.array(t) if as_arrays else t, lr=lr, **settings)
        else:
            read(p, g, m if settings.get("momentum") else None, t == 1, lr=lr, **settings)
    return p, m, v, largest


ADAM = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True}, {"amsgrad": True},
        {"maximize": True, "eps": 0.1, "betas": (0.5, 0.9)}, {"as_arrays": True}]  # fmt: skip
SGD = [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.1},
       {"momentum": 0.9, "nesterov": True}, {"maximize": True, "weight_decay": 0.1},
       {"as_arrays": True}]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 64, 1003])
@pytest.mark.parametrize("kind, settings", [("adam", s) for s in ADAM] + [("sgd", s) for s in SGD])
def test_steps(launcher, kind, settings, size, dtype):
    rng = np.random.default_rng(0)
    start, *gradients = normal(rng, (4, size), dtype)
    read = {"adam": cuda.adam, "sgd": cuda.sgd}[kind]
    rule = {"adam": cuda._adam.rule, "sgd": cuda._sgd.rule}[kind]
    found = steps(kind, read, start, gradients, **settings)
    expected = steps(kind, rule, wide(start), map(wide, gradients), **settings)
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs, DTYPES[dtype] * 4)
    if size == 64:
        for mine, again in zip(found, steps(kind, read, off(start), gradients, **settings)):
            close(again, mine.astype("float64"), DTYPES[dtype])


def test_what_cannot_be_changed_in_place_goes_by_the_rule(launcher):
    p, g = np.ones((2, 4, 6), "float32")
    cuda.sgd(p[:, ::2], g[:, ::2], None, True, lr=0.5)
    assert p.tolist() == [[0.5, 1] * 3] * 4 and not launcher.names


def test_what_is_of_another_shape_goes_by_the_rule(launcher):
    p, g, m, v = np.ones((4, 4, 6), "float32")
    how = dict(lr=0.5, momentum=0.5, dampening=0.25, weight_decay=0.5, maximize=True)
    found = [(p.copy(), m.copy()) for _ in range(2)]
    for step, arrays in zip((cuda.sgd, cuda._sgd.rule), found, strict=True):
        step(arrays[0], g[0], arrays[1], False, **how)
    assert np.array_equal(*found) and not np.array_equal(found[0], (p, m))
    with pytest.raises(ValueError, match="broadcast"):
        cuda.adam(p, g, m, v[0], 1, lr=0.5)
    with pytest.raises(ValueError, match="broadcast"):
        cuda.sgd(p, g, m[0], True, lr=0.5, momentum=0.9)
    assert not launcher.names


def test_without_momentum_a_step_remembers_nothing(launcher):
    p, g, buffer = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    before = buffer.copy()
    cuda.sgd(p, g, buffer, False, lr=0.5)
    assert np.array_equal(buffer, before) and launcher.names


# ---- all together ----


class GPUArray(np.ndarray):
    "An array that passes for one on a GPU."


class EmulatedGPU(Backend):
    "A backend with NumPy's functions, whose kernels are those for GPUs."

    narrow = numpy_backend.narrow

    def asarray(self, data, dtype=None, index=0):
        return np.array(data, dtype=dtype).view(GPUArray)

    def to_numpy(self, array):
        return array.view(np.ndarray)


def on_a_gpu(name):
    "A function of NumPy's whose result is on the GPU."
    return lambda *args, **how: np.asarray(getattr(xp, name)(*args, **how)).view(GPUArray)


@pytest.fixture
def gpu(launcher, monkeypatch):
    "A backend called `cuda`, and the launcher of its kernels."
    makers = "arange array asarray astype empty empty_like matmul ones_like zeros zeros_like"
    made = {name: on_a_gpu(name) for name in makers.split()}
    library = SimpleNamespace(**vars(xp) | made)
    gpu = EmulatedGPU("cuda", library, GPUArray)
    monkeypatch.setitem(backend._by_name, "cuda", gpu)
    monkeypatch.setitem(backend._by_type, GPUArray, gpu)
    return launcher


def trained(device, dtype, optimizer):
    "The parameters of a model after three steps."
    mi.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.FusedDropoutLayerNorm(32, 0.25), nn.Dropout(0.25),
        nn.Linear(32, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4),
    )  # fmt: skip
    model.to(dtype).to(device)
    optimizer = optimizer(model.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    x = mi.Tensor(rng.normal(size=(12, 16)).astype(dtype), device=device)
    labels = mi.Tensor(np.arange(12) % 4, device=device)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return [p.detach().numpy() for p in model.parameters()]


@pytest.mark.parametrize("optimizer", [mi.optim.AdamW, mi.optim.SGD])
def test_a_model_learns_with_kernels_for_gpus_as_on_the_cpu(gpu, optimizer):
    found, expected = (trained(device, "float32", optimizer) for device in ("cuda", "cpu"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    kinds = {name.partition("<")[0] for name in gpu.names}
    assert kinds >= {"bend_backward", "norm_backward", "cross_entropy_backward", "dropout"}


def test_a_model_of_halves_goes_through_kernels_of_halves(gpu):
    found, expected = (trained("cuda", dtype, mi.optim.SGD) for dtype in ("float16", "float32"))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == "float16"
        np.testing.assert_allclose(a, b, atol=3e-3)
    assert any("norm_backward<__half" in name for name in gpu.names)


# ---- compiled for GPUs ----


@pytest.mark.skipif(compiler() is None, reason="there is neither nvcc nor NVRTC: nothing compiles")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", launches.KERNELS)
def test_all_instances_compile_and_fit_into_registers(file, architecture):
    table = compiled(file, architecture)
    assert {*table} == {*launches.instances(files=(file,))}
    for name, facts in table.items():
        assert facts.spilled == 0, f"{name} has too few registers"
        assert facts.registers <= (128 if "backward<" in name else 80)
        packed = re.search(r"norm_(for|back)ward<|, [48]\b", name)
        assert bool(facts.packs) == bool(packed), f"{name} should move 16 bytes at a time"
        if packed:  # cross-entropy also reads a single score, or a single cotangent
            assert facts.halves <= ("cross_entropy" in name), f"{name} moves halves one by one"


MOST = {  # instructions for a number, all told
    "norm_forward<float, 16, true>": 34,
    "norm_forward<__half, 32, true>": 24,
    "norm_forward<__nv_bfloat16, 32, true>": 25,
    "norm_backward<float, 16, true>": 38,
    "norm_backward<__half, 16, true>": 33,
    "norm_backward<__nv_bfloat16, 16, true>": 35,
}


@pytest.mark.skipif(not disassembler(), reason="there is no nvdisasm: instructions are not counted")
@pytest.mark.skipif(compiler() is None, reason="there is neither nvcc nor NVRTC: nothing compiles")
def test_norms_take_few_instructions():
    "Or memory would wait for them. Another compiler may take a few more."
    counts = counted()
    assert {*counts} == {*MOST}
    for name, count in counts.items():
        assert 10 < count < 1.1 * MOST[name], f"{name} takes {count:.1f} instructions for a number"


def test_no_word_is_used_that_only_some_compilers_know():
    "NVRTC has no headers of C, and so none of their macros."
    assert not re.search(r"INFINITY|NAN|HUGE_VAL|printf|assert|#include <c[^u]", launches.source())


# ---- planted faults: each is noticed ----

SUM = """
template <class T> __global__ void sum_of(const T* x, int cols, float* sums) {
  extern __shared__ float shared[];
  for (int row = 0; row < 3; row++) {
    float v = threadIdx.x < cols ? wide(x[row * cols + threadIdx.x]) : 0;
    v = row_sum(v, blockDim.x / 32, shared);
    if (threadIdx.x == 0) sums[row] = v;
  }
}
"""
MEET = "  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;\n  __syncthreads();\n"
PART = (
    "  __syncthreads();  // or a quick warp would write the next sum where a slow one still reads\n"
)
FAULTS = {
    "a barrier is missing": (MEET, MEET.replace("  __syncthreads();\n", ""), "race|not written"),
    "a value is overwritten before it is read": (PART, "", "race"),
    "a barrier for some": (PART, "  if (threadIdx.x < 50) __syncthreads();\n", "wait in vain"),
    "a barrier in each branch": (
        PART,
        "  if (threadIdx.x < 32)\n    __syncthreads();\n  else\n    __syncthreads();\n",
        "two different barriers",
    ),
    "a mask that is too short": ("0xffffffffu, v, mask", "0x0000ffffu, v, mask", "shuffle reads"),
    "a lane that leaves early": (
        "  v = warp_sum(v);\n",
        "  if (threadIdx.x % 32 == 31) return v;\n  v = warp_sum(v);\n",
        "in vain|barrier",
    ),
    "more shared memory than was asked for": (
        "  V* room = reinterpret_cast<V*>(shared)",
        "  V* room = reinterpret_cast<V*>(shared + 1)",
        "beyond its end",
    ),
    "a write behind the end": ("sums[row] = v", "sums[row + 1] = v", "end of an array"),
    "a write before the beginning": ("sums[row] = v", "sums[row - 1] = v", "end of an array"),
    "a load that is not aligned": (
        "float v = threadIdx.x < cols ?",
        "float v = load<4>(x + 1).at[0]; v = threadIdx.x < cols ?",
        "not aligned",
    ),
    "a read behind the end": ("x[row * cols + threadIdx.x]", "x[(row + 1) * cols]", "not written"),
}


@cache
def faulty():
    "The kernel without a fault, and with each; every one in a namespace, all compiled at once."
    common = launches.source("norm").partition("// Layer norm")[0]
    sources = {"": common + SUM}
    for fault, (old, new, _) in FAULTS.items():
        sources[fault] = sources[""].replace(old, new)
        assert sources[fault] != sources[""]
    spaces = {fault: f"fault_{i}" for i, fault in enumerate(sources)}
    text = "".join(f"namespace {spaces[fault]} {{\n{sources[fault]}}}\n" for fault in sources)
    text = text.replace("extern __shared__ float shared[];", "using ::shared;")  # from a namespace
    names = {fault: f"{space}::sum_of<float>" for fault, space in spaces.items()}
    return Emulator(text, [*names.values()]), names


def sums_with(fault, orders=ORDERS):
    "Check the sums of three rows."
    emulator, names = faulty()
    x, sums = np.random.default_rng(0).normal(size=(3, 70)).astype("float32") + 1, poisoned(3, "f4")
    emulator.launch(names[fault], (1,), (96,), (x, np.int32(70), sums), 4 * 3, orders)
    assert np.isfinite(sums).all(), "something was not written"
    np.testing.assert_allclose(sums, x.sum(axis=1), rtol=1e-5)


@pytest.mark.skipif(not can_emulate(), reason="there is no g++, so CUDA kernels cannot run here")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault):
    with pytest.raises((RuntimeError, AssertionError), match=FAULTS[fault][2]):
        sums_with(fault)


@pytest.mark.skipif(not can_emulate(), reason="there is no g++, so CUDA kernels cannot run here")
def test_what_only_one_order_notices():
    "The sum is right, and five orders agree; a race hides from the first three."
    sums_with("")
    sums_with("a value is overwritten before it is read", ORDERS[:3])


# ---- the same faults in minima's own kernels ----


def norm_of_three_rows():
    compare_norm(norm_args((3, 1000), "float32", "rwb", 0.25), True, 1e-5)


def norm_of_many_short_rows():
    compare_norm(norm_args((64, 512), "float32", "rwb", 0.25), True, 1e-5)


def norm_of_longer_rows():
    compare_norm(norm_args((8, 2048), "float32", "rwb", 0.25), True, 1e-5)


def softmax_of_two_rows():
    a = np.random.default_rng(0).normal(size=(2, 1000)).astype("float32")
    compare("softmax", [a], {"axis": -1}, 3e-6)


def loss_of_many_rows():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(1500, 8)).astype("float32"), rng.integers(0, 8, 1500)
    compare("cross_entropy", [x, labels], {}, 3e-6)


def linear_of_many_rows():
    arrays = [np.random.default_rng(0).integers(-4, 5, s) / 2 for s in ((20, 3), (3, 8), (8,))]
    compare("linear", [a.astype("float32") for a in arrays], {"activation": "gelu"}, 1e-5)


NO = "  __syncthreads();\n"
ROW = (
    "  int ours = row < rows ? cols - col : 0;"
    "  // threads without a row still come to the barriers\n"
)
TURN = "    __syncthreads();\n  }\n  if (total == partial) return;\n"
LAST_WARP = "  if (threadIdx.x / 32 + 1 < blockDim.x / 32) __syncthreads();\n"
AGAIN = "  __syncthreads();  // or a quick row would write where a slow one still reads\n"
AWAIT = "    await_all_but_one();\n"
HALF_OF = {"up", "random", "last warp ahead"}, {"down", "first warp ahead"}  # late; at once
SHARED = "extern __shared__ __align__(16) float shared[];"
SHORT = "(0xffffffffu, v, mask)", "(0x0000ffffu, v, mask)"
ALL = {*ORDERS}
IN_KERNELS = [  # instance, fault, what is replaced, by what, a computation, which orders notice
    ("norm_forward<float, 16, false>", "no barrier", MEET, MEET.replace(NO, ""),
     norm_of_three_rows, ALL),
    ("norm_backward<float, 16, false>", "no barrier", MEET, MEET.replace(NO, ""),
     norm_of_three_rows, ALL),
    ("norm_backward<float, 16, false>", "no barrier between turns", TURN, TURN[20:],
     norm_of_three_rows,
     ALL),
    ("add_parts<float>", "no barrier", "= sum;\n" + NO, "= sum;\n", norm_of_three_rows,
     {"up", "random", "first warp ahead"}),
    ("bend_backward<float, Gelu, 4>", "no barrier", "= sum[j];\n" + NO, "= sum[j];\n",
     linear_of_many_rows, {"up", "random", "first warp ahead"}),
    ("norm_forward<float, 16, false>", "a barrier for some", ROW,
     "  if (row >= rows) return;\n  int ours = cols - col;\n", norm_of_three_rows, ALL),
    ("softmax_forward<float, 4, false>", "a barrier for some", PART, LAST_WARP,
     softmax_of_two_rows, ALL),
    ("norm_forward<float, 16, false>", "a short mask", *SHORT, norm_of_three_rows, ALL),
    ("softmax_forward<float, 4, false>", "a short mask", *SHORT, softmax_of_two_rows, ALL),
    ("mean_of<float>", "a short mask", *SHORT, loss_of_many_rows, ALL),
    ("norm_forward<float, 16, false>", "read too late", PART, "", norm_of_three_rows,
     {"first warp ahead"}),
    ("softmax_forward<float, 4, false>", "read too late", PART, "", softmax_of_two_rows,
     {"first warp ahead", "last warp ahead"}),
    ("norm_backward<float, 16, true>", "read too late", AGAIN, "", norm_of_longer_rows,
     {"down", "random", "last warp ahead"}),
    ("norm_backward<float, 16, true>", "not awaited", AWAIT + "    float n", "    float n",
     norm_of_many_short_rows, HALF_OF[0]),
    ("norm_backward<float, 16, true>", "not awaited, of h", AWAIT + "#pragma", "#pragma",
     norm_of_many_short_rows, HALF_OF[0]),
    ("norm_backward<float, 16, true>", "fetched too early", AWAIT + "    float n",
     "    fetch_first(row + step);\n" + AWAIT + "    float n",
     norm_of_many_short_rows, HALF_OF[1]),
    ("mean_of<float>", "read too late", PART, "", loss_of_many_rows,
     {"last warp ahead"}),
]  # fmt: skip


@cache
def faulty_kernels():
    "All of them, compiled at once, and their names."
    text, names = "", []
    for i, (instance, _, old, new, *_) in enumerate(IN_KERNELS):
        source = launches.source(launches.home(instance))
        assert old in source
        source = source.replace(old, new).replace(SHARED, "using ::shared;")
        text += f"namespace fault_{i} {{\n{source}}}\n"
        names.append(f"fault_{i}::{instance}".replace("Gelu", f"fault_{i}::Gelu"))
    return Emulator(text, names), names


class Faulty(launches.EmulatedLauncher):
    "Runs one instance with a fault in it, and all others as they are."

    def __init__(self, which):
        super().__init__()
        self.instance, (emulator, names) = IN_KERNELS[which][0], faulty_kernels()
        self.emulator, self.name = emulator, names[which]

    def launch(self, name, grid, block, args, shared=0):
        if name != self.instance:
            return super().launch(name, grid, block, args, shared)
        return self.emulator.launch(self.name, grid, block, args, shared, self.orders)


@pytest.mark.parametrize("which", range(len(IN_KERNELS)), ids=[
    f"{name.partition('<')[0]}, {fault}" for name, fault, *_ in IN_KERNELS
])  # fmt: skip
def test_a_fault_in_a_kernel_is_noticed(launcher, which):
    *_, compute, expected = IN_KERNELS[which]
    compute()
    assert IN_KERNELS[which][0] in launcher.names
    noticed = set()
    with launches.launching_by(Faulty(which)) as faulty:
        for order in ORDERS:
            faulty.orders = [order]
            try:
                compute()
            except (RuntimeError, AssertionError):
                noticed.add(order)
        faulty.orders = ORDERS
        with pytest.raises((RuntimeError, AssertionError)):
            compute()
    assert noticed == expected


def test_an_array_that_is_not_in_order_is_no_argument(launcher):
    x, y = np.zeros((4, 4), "float32"), np.zeros((4, 4), "float32")
    size = np.int64(4), np.int32(4)
    shape = launches.over_rows("softmax_forward", "float32", *map(int, size), 1, "false")
    launches.launch(shape, x, *size, y)
    for arrays in ((x.T[:2], y), (x, y[:, ::2])):
        with pytest.raises(RuntimeError, match="not in C order"):
            launches.launch(shape, arrays[0], *size, arrays[1])


def test_what_does_not_compile_is_an_error():
    if can_emulate():
        with pytest.raises(RuntimeError, match="g\\+\\+ failed"):
            Emulator("__global__ void f(", ["f"])
