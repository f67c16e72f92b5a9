"Each CUDA kernel, without a GPU: run on the CPU beside its rule, and compiled for GPUs."

from functools import cache

import numpy as np
import pytest

from minima.backend import numpy_backend
from minima.kernels import cuda, launches
from minima.operators.fused import _parts
from minima.random import keep_mask
from minima.testing.emulator import ORDERS, Emulator, can_emulate

xp = numpy_backend.xp
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which has bfloat16, is missing")
DTYPES = {"float32": 3e-6, "float16": 6e-4, "bfloat16": 5e-3}  # with what relative precision
DRAW = np.array([2**33 + 7, 2**35 + 1], "uint64")


@cache
def emulated(file):
    "All kernels of a file, on the CPU."
    return Emulator(launches.source(file), launches.instances(files=(file,)))


class OnTheCPU:
    "A launcher of kernels on the CPU, which keeps the names of what it launched."

    def __init__(self):
        self.orders, self.names = ORDERS[:1], []

    def launch(self, name, grid, block, args, shared=0):
        self.names.append(name)
        emulated(launches.home(name)).launch(name, grid, block, args, shared, self.orders)

    def processors(self):
        return 3


@pytest.fixture
def launcher(monkeypatch):
    "Kernels run on the CPU, and what they do not write is NaN."
    if not can_emulate():
        pytest.skip("there is no g++, so CUDA kernels cannot run on the CPU")
    monkeypatch.setattr(xp, "empty", poisoned)
    monkeypatch.setattr(xp, "empty_like", lambda a: poisoned(a.shape, a.dtype))
    with launches.launching_by(OnTheCPU()) as launcher:
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


# ---- norms ----


def norm_args(shape, dtype, given, p, seed=0):
    "What `_parts` takes: x, residual, weight, bias, draw, p, eps."
    rng = np.random.default_rng(seed)
    x, residual = normal(rng, (2, *shape), dtype)
    weight, bias = normal(rng, (2, shape[-1]), dtype)
    residual, weight, bias = (
        a if name in given else None
        for name, a in (("r", residual), ("w", weight), ("b", bias))
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
    y, z, pulls = cuda.parts(xp, *args, wants_z)
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


WIDTHS = {1: "_any", 7: "_any", 256: "1, 8", 504: "1, 16", 1024: "2, 16", 2000: "4, 16",
          4096: "8, 16", 8192: "16, 16", 8200: "_any"}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", WIDTHS)
def test_norms_of_all_widths(launcher, cols, dtype):
    args = norm_args((3, cols), dtype, "rwb", 0.25)
    compare_norm(args, False, DTYPES[dtype])
    forward, backward, _ = launcher.names
    assert WIDTHS[cols] in forward and WIDTHS[cols] in backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("given", ["", "r", "w", "rb", "rwb"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (2, 9, 64), (13, 33)])
def test_norms_with_and_without(launcher, shape, given, p, dtype):
    for wants_z in (False, True):
        args = norm_args(shape, dtype, given, p)
        compare_norm(args, wants_z, DTYPES[dtype] * (4 if wants_z else 1))


@pytest.mark.parametrize("cols", [24, 64, 1000, 2048])
def test_no_order_of_threads_matters(launcher, cols):
    launcher.orders = ORDERS
    compare_norm(norm_args((9, cols), "float32", "rwb", 0.25), True, 3e-6)


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_norms_of_few_and_many_rows(launcher, rows):
    for cols in (12, 13, 128):
        compare_norm(norm_args((rows, cols), "float32", "rwb", 0.25), False, 3e-6)


def test_a_norm_of_a_row_far_from_zero(launcher):
    "The mean is as exact as if it had been made twice."
    for cols in (64, 65, 1024):
        x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(3, cols))).astype("float32")
        y, *_ = cuda.normalize(xp, x, axis=-1, eps=0.0)
        wide = x.astype("float64")
        wide -= wide.mean(axis=-1, keepdims=True)
        close(y, wide / wide.std(axis=-1, keepdims=True), 3e-3)  # half a unit of the mean
        y, *_ = cuda.normalize(xp, np.full_like(x, 1000 / 3), axis=-1, eps=1e-5)
        assert not y.any()


def test_arrays_that_are_not_aligned_go_number_by_number(launcher):
    args = norm_args((4, 64), "float32", "rwb", 0.25)
    both = [compare_norm(args, False, 3e-6)]
    for i in range(4):
        names, moved = len(launcher.names), list(args)
        moved[i] = off(args[i])
        both.append(compare_norm(moved, False, 3e-6))
        assert "any" in launcher.names[names]
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


@pytest.mark.parametrize("cols", [8, 12, 13, 256, 2048, 9000])
def test_masks_of_norms_are_those_of_the_cpu(launcher, cols):
    x, g = np.random.default_rng(0).normal(size=(2, 5, cols)).astype("float32")
    _, _, pulls = cuda.parts(xp, x, x, None, None, DRAW, 0.5, 1e-5, False)
    by_x, by_residual = pulls[0](g), pulls[1](g)
    keep = keep_mask(x.shape, 0.5, *map(int, DRAW))
    assert np.array_equal(by_x, np.where(keep, by_residual * 2, 0))
