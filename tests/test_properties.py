"What holds whatever the shapes, axes, broadcasts and indices: NumPy is the reference."

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minima import operators as ops
from minima.autograd import Tensor, grad

few = settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
many = settings(max_examples=500, suppress_health_check=[HealthCheck.filter_too_much])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
SOLID = hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)
SEEDS = st.integers(0, 2**32 - 1)


def normal(shape, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape))


def pulled(f, arrays, seed=1):
    "`f` of `arrays`, a random cotangent, and the gradients by all of them."
    leaves = [Tensor(a, requires_grad=True) for a in arrays]
    y = f(*leaves)
    g = normal(y.shape, seed)
    return y.detach().numpy(), g, [x.numpy() for x in grad(y, leaves, g)]


def slope(f, arrays, g, seed=2, eps=1e-6):
    "How fast the dot product of `f` and `g` changes along a random direction; and the direction."
    ways = [normal(a.shape, seed + i) for i, a in enumerate(arrays)]
    ahead, behind = (
        f(*(Tensor(a + s * w) for a, w in zip(arrays, ways))).numpy() for s in (eps, -eps)
    )
    return np.vdot(g, ahead - behind) / (2 * eps), ways


def check(f, reference, arrays):
    "The value is that of `reference`, and the gradient what differences measure."
    y, g, gradients = pulled(f, arrays)
    expected = np.asarray(reference(*arrays))
    assert y.shape == expected.shape and y.dtype == expected.dtype
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    measured, ways = slope(f, arrays, g)
    derived = sum(np.vdot(a, b) for a, b in zip(gradients, ways))
    assert [a.shape for a in gradients] == [a.shape for a in arrays]
    np.testing.assert_allclose(derived, measured, rtol=1e-5, atol=1e-5)


# ---- operators ----

BROADCASTS = hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=4)
TWO = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": lambda a, b: a / b,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": lambda a, b: a**b,
}
ONE = "exp expm1 sin cos tanh sigmoid erf relu softplus silu gelu leaky_relu abs floor".split()


@few
@given(BROADCASTS, st.sampled_from(sorted(TWO)), SEEDS)
def test_whatever_can_be_broadcast_has_gradients_of_its_own_shape(shapes, name, seed):
    a, b = (normal(s, seed + i) for i, s in enumerate(shapes.input_shapes))
    if name in ("divide", "power"):
        a, b = abs(a) + 0.5, abs(b) + 0.5
    assume(name not in ("maximum", "minimum") or np.all(abs(a - b) > 1e-4))
    check(getattr(ops, name), TWO[name], [a, b])


@few
@given(SHAPES, st.sampled_from(ONE), SEEDS)
def test_a_function_of_one_argument_acts_on_each_element_alone(shape, name, seed):
    f, a = getattr(ops, name), normal(shape, seed)
    assume(np.all(abs(a - np.round(a)) > 1e-4))
    one_by_one = [f(Tensor(x)).item() for x in a.reshape(-1)]
    check(f, lambda a: np.array(one_by_one, dtype=a.dtype).reshape(shape), [a])


@few
@given(hnp.mutually_broadcastable_shapes(signature="(m,n),(n,p)->(m,p)", max_dims=2, max_side=3,
                                         min_side=0), SEEDS)  # fmt: skip
def test_products_of_stacks_of_matrices(shapes, seed):
    arrays = [normal(s, seed + i) for i, s in enumerate(shapes.input_shapes)]
    check(ops.matmul, np.matmul, arrays)


@few
@given(BROADCASTS, SEEDS)
def test_where_chooses_and_shares_out_the_gradient(shapes, seed):
    a, b = (normal(s, seed + i) for i, s in enumerate(shapes.input_shapes))
    mask = normal(shapes.result_shape, seed) > 0
    check(lambda x, y: ops.where(mask, x, y), lambda x, y: np.where(mask, x, y), [a, b])


# ---- reductions ----


@st.composite
def shapes_and_axes(draw, shapes=SHAPES):
    "A shape, and None, an axis or several of it, counted from either end."
    shape = draw(shapes)
    n = len(shape)
    if not n:
        return shape, None
    several = hnp.valid_tuple_axes(n)
    return shape, draw(st.one_of(st.none(), st.integers(-n, n - 1), several))


REDUCTIONS = {
    "sum": np.sum,
    "prod": np.prod,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "logsumexp": lambda a, axis, keepdims: np.log(np.sum(np.exp(a), axis=axis, keepdims=keepdims)),
    "var": lambda a, axis, keepdims: np.var(a, axis=axis, keepdims=keepdims, ddof=1),
    "norm": lambda a, axis, keepdims: np.sqrt(np.sum(a * a, axis=axis, keepdims=keepdims)),
}


def counted(shape, axis):
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return math.prod(shape[i] for i in axes)


@many
@given(shapes_and_axes(), st.booleans(), st.sampled_from(sorted(REDUCTIONS)), SEEDS)
def test_a_reduction_is_numpys_over_any_axes(case, keepdims, name, seed):
    (shape, axis), f = case, getattr(ops, name)
    n = counted(shape, axis)
    assume(n > {"var": 1, "sum": -1, "prod": -1}.get(name, 0))
    options = dict(axis=axis, keepdims=keepdims)
    check(
        lambda x: f(x, **options), lambda a: REDUCTIONS[name](a, **options), [normal(shape, seed)]
    )


@pytest.mark.filterwarnings("ignore:divide by zero")  # where there is nothing to add up
@few
@given(shapes_and_axes(), st.sampled_from(["softmax", "log_softmax"]), SEEDS)
def test_a_softmax_sums_to_one_over_any_axes(case, name, seed):
    shape, axis = case
    a = normal(shape, seed)

    def reference(a):
        e = np.exp(a)
        p = e / np.sum(e, axis=axis, keepdims=True)
        return p if name == "softmax" else np.log(p)

    check(lambda x: getattr(ops, name)(x, axis=axis), reference, [a])


@few
@given(shapes_and_axes(SOLID), st.booleans(), st.sampled_from(["argmax", "argmin", "any", "all"]))
def test_where_the_extremes_are_and_what_is_true(case, keepdims, name):
    (shape, axis), f = case, getattr(np, name)
    a = np.round(normal(shape) * 2)
    axis = axis[0] if isinstance(axis, tuple) and axis and "arg" in name else axis
    assume(not ("arg" in name and axis == ()))
    y = getattr(ops, name)(a, axis=axis, keepdims=keepdims).numpy()
    expected = np.asarray(f(a, axis=axis, keepdims=keepdims))
    np.testing.assert_array_equal(y, expected)
    assert y.shape == expected.shape and y.dtype == expected.dtype


@few
@given(SHAPES.filter(len), st.data(), SEEDS)
def test_running_sums_sorts_and_the_largest_along_an_axis(shape, data, seed):
    axis, a = data.draw(st.integers(-len(shape), len(shape) - 1)), normal(shape, seed)
    down = data.draw(st.booleans())
    k = data.draw(st.integers(0, shape[axis]))
    ordered = lambda a: np.flip(np.sort(a, axis), axis) if down else np.sort(a, axis)
    first = (slice(None),) * (axis % len(shape)) + (slice(k),)
    check(lambda x: ops.cumsum(x, axis=axis), lambda a: np.cumsum(a, axis), [a])
    check(lambda x: ops.sort(x, axis, down).values, ordered, [a])
    check(lambda x: ops.topk(x, k, axis, largest=down).values, lambda a: ordered(a)[first], [a])


# ---- indexing ----


@st.composite
def keys(draw, shape):
    "Integers, slices, arrays or a mask, None and an ellipsis, in any mixture that NumPy takes."
    kind = draw(st.sampled_from(["basic", "arrays", "mask"]))
    together = draw(hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=3))

    def one(n):
        choices = [st.slices(n)]
        if n:
            choices.append(st.integers(-n, n - 1))
        if kind == "arrays" and n:
            indices = st.sampled_from([together, together[1:], (1,) * len(together)])
            choices.append(hnp.arrays("int64", indices, elements=st.integers(-n, n - 1)))
        return draw(st.one_of(choices))

    before = draw(st.integers(0, len(shape)))
    key = [one(n) for n in shape[:before]]
    if kind == "mask" and before:
        first = draw(st.integers(0, before - 1))
        mask = draw(hnp.arrays("bool", shape[first:before]))
        key[first:] = [mask]
    if draw(st.booleans()):
        after = draw(st.integers(0, len(shape) - before))
        key += [Ellipsis, *(one(n) for n in shape[len(shape) - after :])]
    for _ in range(draw(st.integers(0, 2))):
        key.insert(draw(st.integers(0, len(key))), None)
    return key[0] if len(key) == 1 and draw(st.booleans()) else tuple(key)


def said_otherwise(draw, key):
    "The same `key`, its arrays now and then as lists or Tensors."

    def other(k):
        if not isinstance(k, np.ndarray):
            return k
        forms = [k, Tensor(k)] + ([k.tolist()] if k.size else [])
        return draw(st.sampled_from(forms))

    return tuple(map(other, key)) if isinstance(key, tuple) else other(key)


KEYED = SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), keys(shape)))


@many
@given(KEYED, st.data(), SEEDS)
def test_indexing_picks_what_numpy_picks_and_scatters_its_gradient(case, data, seed):
    shape, key = case
    a = normal(shape, seed)
    expected = np.asarray(a[key])
    y, g, (by_a,) = pulled(lambda x: x[said_otherwise(data.draw, key)], [a])
    scattered = np.zeros(shape)
    np.add.at(scattered, key, g)
    assert y.shape == expected.shape and by_a.shape == shape
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(by_a, scattered, rtol=1e-12, atol=1e-12)


@many
@given(KEYED, st.data(), SEEDS)
def test_writing_at_an_index_writes_where_numpy_writes(case, data, seed):
    shape, key = case
    a = normal(shape, seed)
    picked = np.asarray(a[key]).shape
    value = normal(data.draw(st.sampled_from([picked, picked[1:], ()])), seed + 1)
    x, expected = Tensor(a.copy()), a.copy()
    x[said_otherwise(data.draw, key)] = data.draw(st.sampled_from([value, Tensor(value)]))
    expected[key] = value
    np.testing.assert_array_equal(x.numpy(), expected)


@few
@given(SOLID.filter(len), st.data(), SEEDS)
def test_taking_and_gathering_along_an_axis(shape, data, seed):
    axis, a = data.draw(st.integers(-len(shape), len(shape) - 1)), normal(shape, seed)
    n = shape[axis]
    some = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
    i = data.draw(hnp.arrays("int64", some, elements=st.integers(0, n - 1)))
    check(lambda x: ops.take(x, i, axis), lambda a: np.take(a, i, axis), [a])
    sizes = list(shape)
    sizes[axis] = data.draw(st.integers(0, 4))
    i = data.draw(hnp.arrays("int64", tuple(sizes), elements=st.integers(0, n - 1)))
    check(lambda x: ops.gather(x, axis, i), lambda a: np.take_along_axis(a, i, axis % a.ndim), [a])


# ---- shapes ----


@few
@given(SHAPES, st.data(), SEEDS)
def test_elements_stay_while_axes_change(shape, data, seed):
    a, n = normal(shape, seed), len(shape)
    order = tuple(data.draw(st.permutations(range(n))))
    split = data.draw(st.integers(0, n))
    flat = math.prod(shape[:split]), math.prod(shape[split:])
    check(lambda x: ops.permute(x, order), lambda a: np.transpose(a, order), [a])
    check(lambda x: x.reshape(flat), lambda a: np.reshape(a, flat), [a])
    check(lambda x: x.T, np.transpose, [a])
    axis = data.draw(st.integers(-n - 1, n))
    check(lambda x: ops.expand_dims(x, axis), lambda a: np.expand_dims(a, axis), [a])
    if n:
        axes = data.draw(hnp.valid_tuple_axes(n))
        shift = data.draw(st.integers(-5, 5))
        check(lambda x: ops.flip(x, axes), lambda a: np.flip(a, axes), [a])
        check(lambda x: ops.roll(x, shift, 0), lambda a: np.roll(a, shift, 0), [a])
        check(lambda x: ops.swapaxes(x, 0, -1), lambda a: np.swapaxes(a, 0, -1), [a])


@few
@given(SHAPES.filter(len), st.data(), SEEDS)
def test_what_is_cut_can_be_joined_again(shape, data, seed):
    axis, a = data.draw(st.integers(-len(shape), len(shape) - 1)), normal(shape, seed)
    size = data.draw(st.integers(1, 5))
    check(lambda x: ops.concat(ops.split(x, size, axis), axis), lambda a: a, [a])
    check(lambda x: ops.concat(ops.chunk(x, size, axis), axis), lambda a: a, [a])
    count = data.draw(st.integers(1, 3))
    check(
        lambda *x: ops.stack(x, axis), lambda *a: np.stack(a, axis), [a + i for i in range(count)]
    )
    before, after = shape[: axis % len(shape)], shape[axis % len(shape) + 1 :]
    pieces = [normal((*before, i, *after), seed + i) for i in range(count)]
    check(lambda *x: ops.concat(x, axis), lambda *a: np.concatenate(a, axis), pieces)


@few
@given(SHAPES, st.data(), SEEDS)
def test_copies_and_frames(shape, data, seed):
    a = normal(shape, seed)
    reps = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    pairs = tuple(data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in shape)
    check(lambda x: ops.tile(x, reps), lambda a: np.tile(a, reps), [a])
    check(lambda x: ops.repeat_interleave(x, 2), lambda a: np.repeat(a, 2), [a])
    if pairs:
        check(lambda x: ops.pad(x, pairs), lambda a: np.pad(a, pairs), [a])
    stretched = tuple(data.draw(st.lists(st.integers(0, 2), max_size=2))) + shape
    check(lambda x: x.broadcast_to(stretched), lambda a: np.broadcast_to(a, stretched), [a])


# ---- dtypes ----


@few
@given(SHAPES, st.sampled_from(["float16", "float32", "float64"]), SEEDS)
def test_a_cast_there_and_back_keeps_what_fits_and_the_gradients_dtype(shape, dtype, seed):
    a = normal(shape, seed).astype("float16")
    x = Tensor(a.astype(dtype), requires_grad=True)
    y = x.half().double().float()
    np.testing.assert_array_equal(y.detach().numpy(), a.astype("float32"))
    (g,) = grad(y, x, np.ones(shape, "float32"))
    assert g.dtype == dtype and g.shape == shape and np.all(g.numpy() == 1)
