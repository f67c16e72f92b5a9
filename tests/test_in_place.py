"Kernels in NumPy alone: each is its rule, on whatever it is given."

import numpy as np
import pytest

from minima import operators as ops
from minima.autograd.tape import _kept
from minima.autograd import Tensor
from minima.backend import kernels_off, numpy_backend
from minima.kernels import rows
from minima.testing import vs_torch

# Registered kernels may be numba's; these are called by name.
xp = numpy_backend.xp
LAYOUTS = {
    "as it is": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
}
TOLERANCES = {"float32": 3e-6, "float64": 1e-13}


def numbers(shape, dtype="float32", layout="as it is", seed=0, scale=1.0, offset=0.0):
    "Numbers that nobody can write into."
    a = np.asarray(np.random.default_rng(seed).normal(size=shape) * scale + offset)
    a = LAYOUTS[layout](a.astype(dtype)) if a.ndim else a.astype(dtype)
    a.flags.writeable = False
    return a


def both(op, kernel, *arrays, **settings):
    "Value and gradients, summed to the arguments' shapes, of the rule and of the kernel."
    found = []
    for read in (op.rule, kernel):
        y, *pulls = read(xp, *arrays, **settings)
        g = numbers(y.shape, y.dtype, seed=9)
        gradients = [pull(g) for pull in pulls[: len(arrays)]]
        again = [pull(g) for pull in pulls[: len(arrays)]]
        for one, two in zip(gradients, again):
            np.testing.assert_array_equal(one, two)
        sums = [d.sum(axis=tuple(range(d.ndim - a.ndim))) for d, a in zip(gradients, arrays)]
        sums = [d.sum(axis=tuple(i for i, n in enumerate(a.shape) if n == 1), keepdims=True)
                for d, a in zip(sums, arrays)]  # fmt: skip
        found.append([y, *sums])
    return found


def assert_alike(op, kernel, *arrays, tolerance=None, **settings):
    "The kernel has the rule's numbers, dtypes and shapes."
    tolerance = tolerance or TOLERANCES[str(arrays[0].dtype)]
    for one, two in zip(*both(op, kernel, *arrays, **settings)):
        assert one.shape == two.shape and one.dtype == two.dtype
        scale = np.abs(one).max(initial=0)
        np.testing.assert_allclose(two, one, rtol=tolerance, atol=tolerance * min(scale, 1e30))


ONE = [(1,), (7,), (3, 5), (2, 1, 4), (16384,), (16385,), (3, 16384), (0,), (2, 0, 3)]


@pytest.mark.parametrize("shape", ONE, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gelu_has_the_numbers_of_its_rule(shape, dtype):
    assert_alike(ops.gelu, rows.gelu, numbers(shape, dtype, scale=3))
    assert_alike(ops.gelu, rows.gelu, numbers(shape, dtype), approximate="tanh")


def test_gelu_is_closer_to_the_truth_than_its_rule_on_all_scales():
    x = np.linspace(-13, 13, 200001, dtype="float32")
    exact, slope = ops.gelu.rule(xp, x.astype("float64"))
    y, pull = rows.gelu(xp, x)
    off = lambda y: np.max(np.abs(y - exact)[x != 0] / np.abs(exact)[x != 0])
    assert off(y) < 5e-6 and off(y) < off(ops.gelu.rule(xp, x)[0])
    inner = np.abs(x) < 3
    np.testing.assert_allclose(y[inner], exact[inner], rtol=8e-7)
    np.testing.assert_allclose(pull(np.ones_like(x)), slope(np.ones_like(exact)), atol=4e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gelu_of_what_is_no_number_and_of_the_largest_is_the_rules():
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3e38, -3e38, 1e-40, -30, 30], "float32")
    (y, pull), (same, pull_too) = (read(xp, x) for read in (ops.gelu.rule, rows.gelu))
    np.testing.assert_allclose(same, y, rtol=1e-6)
    np.testing.assert_allclose(pull_too(x), pull(x), rtol=1e-6)


SOFTMAX = [
    ((4, 5), -1), ((5,), 0), ((1, 1), 1), ((3, 2, 7), 2), ((3, 2, 7), (-1,)), ((700, 129), -1),
    ((2, 70000), 1), ((), -1), ((0, 3), -1), ((3, 0), 0), ((4, 5), 0), ((2, 3, 4), (1, 2)),
    ((2, 3), None), ((7,), None),
]  # fmt: skip


@pytest.mark.parametrize("shape, axis", SOFTMAX, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_softmax_has_the_numbers_of_its_rule(shape, axis, dtype):
    assert_alike(ops.softmax, rows.softmax, numbers(shape, dtype, scale=3), axis=axis)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "row",
    [
        [1000.0, 0, -1000], [59, -59, 0], [61, 61.5, 60], [-200, -201, -1e30], [-6, -7, -8],
        [-80, -81, -90], [np.nan, 0, 1], [np.inf, 0, 1], [-np.inf, 0, 1], [-np.inf] * 3, [3e38] * 3,
    ],
    ids=str,
)  # fmt: skip
def test_softmax_of_rows_that_need_care_is_the_rules(row):
    x = np.array([row, [0.5, 1, 2]], "float32")
    (y, pull), (same, pull_too) = (read(xp, x) for read in (ops.softmax.rule, rows.softmax))
    g = numbers(x.shape)
    np.testing.assert_allclose(same, y, rtol=4e-6, atol=1e-37)
    np.testing.assert_allclose(pull_too(g), pull(g), rtol=4e-6, atol=1e-7)


NORMS = [((4, 6), 1), ((6,), 1), ((2, 3, 5), 1), ((2, 3, 5), 2), ((2, 3, 5), 3), ((700, 130), 1),
         ((3, 1), 1), ((2, 66000), 1), ((0, 4), 1), ((4, 0), 1)]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("shape, axes", NORMS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_normalize_has_the_numbers_of_its_rule(shape, axes, dtype, affine):
    sizes = shape[len(shape) - axes :]
    arrays = numbers(shape, dtype, offset=2), *(numbers(sizes, dtype, seed=i) for i in (1, 2))
    settings = dict(axis=tuple(range(-axes, 0)), eps=1e-5)
    tolerance = 2e-5 if dtype == "float32" else None  # sums of 66000 products, in another order
    assert_alike(
        ops.normalize, rows.normalize, *arrays[: 1 + affine], tolerance=tolerance, **settings
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 6), (1, 3), (5, 1), (700, 33), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("extra", [(), (1,)])
def test_normalize_has_the_numbers_of_its_rule_over_columns(extra, shape, dtype, affine):
    sizes = (*extra, shape[1])
    arrays = numbers(shape, dtype, offset=2), *(numbers(sizes, dtype, seed=i) for i in (1, 2))
    settings = dict(axis=(0,), eps=1e-5, tolerance=2e-5 if dtype == "float32" else None)
    assert_alike(ops.normalize, rows.normalize, *arrays[: 1 + affine], **settings)


@pytest.mark.parametrize("axis, shapes", [
    ((0,), [(4, 6), (6,), ()]), ((0,), [(4, 4), (4, 1)]),
    ((0, 2), [(4, 6, 3), (1, 6, 1), (1, 6, 1)]),
    ((0, -1), [(4, 6, 3)]), ((-1,), [(4, 6), (1, 6)]), (1, [(4, 6), (6,), ()]),
])  # fmt: skip
def test_normalize_leaves_other_axes_and_other_shapes_to_the_rule(axis, shapes):
    arrays = [numbers(s, "float64", seed=i) for i, s in enumerate(shapes)]
    assert_alike(ops.normalize, rows.normalize, *arrays, axis=axis, eps=1e-5)


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float64")])
@pytest.mark.parametrize("axis", [0, -1])
def test_normalize_leaves_two_dtypes_to_the_rule(axis, dtypes):
    arrays = numbers((4, 4)), *(numbers((4,), d, seed=i) for i, d in enumerate(dtypes, 1))
    assert_alike(ops.normalize, rows.normalize, *arrays, axis=axis, eps=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_normalize_lets_nothing_that_is_no_number_leave_its_row():
    x = np.array(numbers((5, 8)))
    x[1, 2], x[2, 3], x[3] = np.nan, np.inf, 7
    y, same = (read(xp, x, axis=-1, eps=1e-5)[0] for read in (ops.normalize.rule, rows.normalize))
    np.testing.assert_allclose(same, y, rtol=1e-5, atol=1e-6)
    assert np.isfinite(same[[0, 3, 4]]).all()


LINEAR = [
    ((4, 3), (3, 5), (5,)), ((2, 3, 4), (4, 1), (1, 1)), ((3,), (3, 2), (2,)),
    ((2, 3, 2, 4), (4, 6), (1, 6)), ((0, 3), (3, 2), (2,)), ((2, 0), (0, 3), (3,)),
    ((0, 2, 3), (3, 4), (4,)),
]  # fmt: skip


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "sigmoid", "tanh"])
@pytest.mark.parametrize("shapes", LINEAR, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_linear_has_the_numbers_of_its_rule(shapes, dtype, activation):
    arrays = [numbers(s, dtype, seed=i) for i, s in enumerate(shapes)]
    assert_alike(ops.linear, rows.linear, *arrays, activation=activation)


KERNELS = {
    "gelu": (ops.gelu, rows.gelu, [(6, 7)], {}),
    "softmax": (ops.softmax, rows.softmax, [(6, 7)], {}),
    "normalize columns": (
        ops.normalize,
        rows.normalize,
        [(6, 7), (7,), (7,)],
        dict(axis=0, eps=1e-5),
    ),
    "normalize": (ops.normalize, rows.normalize, [(6, 7), (7,), (7,)], dict(axis=-1, eps=1e-5)),
    "linear": (ops.linear, rows.linear, [(6, 7), (7, 4), (4,)], {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_take_arrays_however_they_lie(name, layout):
    op, kernel, shapes, settings = KERNELS[name]
    arrays = [numbers(s, layout=layout, seed=i) for i, s in enumerate(shapes)]
    assert_alike(op, kernel, *arrays, **settings)
    y, *pulls = kernel(xp, *arrays, **settings)
    g = numbers(y.shape, layout=layout, seed=5)
    for pull in pulls:
        np.testing.assert_allclose(pull(g), pull(np.ascontiguousarray(g)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "int64"])
@pytest.mark.parametrize("name", KERNELS)
def test_other_dtypes_are_left_to_the_rule(name, dtype):
    op, kernel, shapes, settings = KERNELS[name]
    arrays = [numbers(s, seed=i).astype(dtype) for i, s in enumerate(shapes)]
    one, two = (read(xp, *arrays, **settings)[0] for read in (op.rule, kernel))
    assert one.dtype == two.dtype
    np.testing.assert_array_equal(one, two)


KEPT = {
    "gelu": ["x"],
    "softmax": [""],
    "normalize": ["w", "", ""],
    "normalize columns": ["w", "", ""],
    "linear": ["w", "x", ""],
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_pullback_keeps_no_argument_that_it_does_not_need(name):
    op, kernel, shapes, settings = KERNELS[name]
    arrays = [numbers(s, seed=i) for i, s in enumerate(shapes)]
    words = dict(zip("xwb", arrays))
    _, *pulls = kernel(xp, *arrays, **settings)
    for pull, wanted in zip(pulls, KEPT[name]):
        kept = [a for _, a in _kept(pull)]
        held = {w for w, a in words.items() if any(np.shares_memory(a, k) for k in kept)}
        assert held <= {*wanted}


USED = [
    ("gelu", [(5,)], {}), ("gelu", [(2, 16385)], {}), ("softmax", [(3, 4)], {}),
    ("softmax", [(3, 4)], dict(axis=1)), ("softmax", [(2, 3, 4)], {}),
    ("softmax", [(2, 3, 4)], dict(axis=(-1,))),
    ("softmax", [(4,)], dict(axis=0)), ("softmax", [(1,)], dict(axis=-1)),
    ("normalize", [(3, 4)], dict(axis=-1, eps=1e-5)),
    ("normalize", [(2, 3, 4), (3, 4), (3, 4)], dict(axis=(1, 2), eps=1e-5)),
    ("normalize", [(2, 3), (2, 3)], dict(axis=(-2, -1), eps=1e-5)),
    ("normalize", [(3, 4), (1, 4), (1, 4)], dict(axis=(0,), eps=1e-5)),
    ("normalize", [(3, 4), (4,), (4,)], dict(axis=-2, eps=1e-5)),
    ("linear", [(2, 3), (3, 4), (1, 4)], dict(activation="gelu")),
]  # fmt: skip


@pytest.mark.parametrize("name, shapes, settings", USED, ids=str)
def test_what_kernels_are_for_is_not_left_to_the_rule(name, shapes, settings, monkeypatch):
    op, kernel, *_ = KERNELS[name]
    arrays = [numbers(s, seed=i) for i, s in enumerate(shapes)]
    expected = op.rule(xp, *arrays, **settings)[0]
    for other in (ops.gelu, op):
        monkeypatch.setattr(other, "rule", None)
    y, *pulls = kernel(xp, *arrays, **settings)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for pull, a in zip(pulls, arrays):
        assert (pull(y).shape, pull(y).dtype) == (a.shape, y.dtype)


def test_an_axis_that_is_not_there_is_refused():
    for kernel, settings in ((rows.softmax, {}), (rows.normalize, dict(eps=1e-5))):
        for axis in (2, -3):
            with pytest.raises(IndexError, match="out of range"):
                kernel(xp, numbers((3, 4)), axis=axis, **settings)


def test_each_operation_has_a_kernel_with_numba_or_without():
    for op in (ops.gelu, ops.softmax, ops.normalize, ops.linear):
        assert op.readings.kernels.find("cpu") is not None


@pytest.mark.parametrize("name", ["gelu", "softmax", "normalize"])
def test_the_operations_agree_with_torch(torch, name):
    F = torch.nn.functional
    ours, theirs = {
        "gelu": (ops.gelu, F.gelu),
        "softmax": (ops.softmax, lambda a: torch.softmax(a, -1)),
        "normalize": (
            lambda a: ops.normalize(a, axis=-1, eps=1e-5),
            lambda a: F.layer_norm(a, a.shape[-1:]),
        ),
    }[name]
    vs_torch(ours, theirs, [np.array(numbers((64, 33)))], dtype="float32", verbose=False)


@pytest.mark.parametrize("dim", [300, 1000, 4096])
def test_rows_of_a_large_mean_keep_their_digits(dim):
    x = np.full((3, dim), 1234.567, "float32")
    x[1] += np.random.default_rng(0).normal(size=dim).astype("float32")
    with kernels_off():
        expected = ops.normalize(Tensor(x), axis=(-1,), eps=1e-5).numpy()
    found = ops.normalize(Tensor(x), axis=(-1,), eps=1e-5).numpy()
    np.testing.assert_allclose(found, expected, atol=0.06)
    np.testing.assert_allclose(found[1], (x[1] - x[1].mean(dtype="f8")) / x[1].std(), atol=1e-3)
