"Corners of the rules, each of which only one test here looks into: found by breaking the rules."

import numpy as np
import pytest
from test_operators import ROWS, numbers

from minima import operators as ops
from minima.autograd import Tensor, grad
from minima.backend import numpy_backend
from minima.random import keep_mask
from minima.testing import gradcheck

# ---- what a rule asks of its library ----


class Strict:
    "NumPy's functions, for which a single number has no axis, not even 0 or -1."

    def __getattr__(self, name):
        function = getattr(numpy_backend.xp, name)

        def strictly(*args, **settings):
            axis = settings.get("axis", -1 if name == "argsort" else None)
            if getattr(args[0], "ndim", None) == 0 and axis not in (None, ()):
                raise IndexError(f"{name} of a single number has no axis {axis}")
            return function(*args, **settings)

        return function if isinstance(function, type) else strictly


ALONG = (
    ops.summation, ops.mean, ops.var, ops.std, ops.max, ops.min, ops.any, ops.all, ops.prod,
    ops.cumsum, ops.logsumexp, ops.softmax, ops.log_softmax, ops.argsort,
)  # fmt: skip


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("f", ALONG, ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_rule_asks_the_library_for_no_axis_that_a_single_number_lacks(f, axis):
    read_by = lambda xp: f.rule(xp, np.asarray(1.5), axis=axis)
    strict, plain = read_by(Strict()), read_by(numpy_backend.xp)
    for x, y in zip(strict, plain) if isinstance(plain, tuple) else [(strict, plain)]:
        x, y = (z(np.asarray(0.5)) if callable(z) else z for z in (x, y))
        np.testing.assert_array_equal(x, y)


def test_a_norm_asks_the_library_for_no_axis_that_a_single_number_lacks():
    rule = ops.reductions._norm.rule
    value, pull = rule(Strict(), np.asarray(-3.0), ord=2, axis=0, keepdims=False)
    assert value == 3 and pull(np.asarray(1.0)) == -1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_pullbacks_compute_no_wider_than_they_must(row):
    for shapes, settings in row.cases():
        leaves = [Tensor(a, dtype="float32", requires_grad=True) if a.dtype.kind == "f" else a
                  for a in numbers(row.make, shapes)]  # fmt: skip
        y = row.ours_with(settings)(*leaves)
        for _, pull in y._edges or () if y.requires_grad else ():
            assert pull(np.ones(y.shape, y.dtype)).dtype == "float32"


def test_a_half_stays_a_half_beside_integers_whatever_the_default():
    half = Tensor(np.ones(3, "float16"))
    for y in (half * np.arange(3), half ** Tensor([1, 2, 3]), np.arange(3) - half):
        assert y.dtype == "float16"


def test_what_stands_beside_a_half_keeps_all_its_digits():
    half, third = Tensor(np.ones(1, "float16")), Tensor(np.array([1 / 3]))
    for y in (half * third, third / half, half.exp() * 0 + third, ops.maximum(half * 0, third)):
        assert y.dtype == "float64" and y.tolist() == [1 / 3]


# ---- reductions ----


@pytest.mark.parametrize("f", [ops.logsumexp, ops.softmax, ops.log_softmax])
def test_rows_of_very_different_size_do_not_disturb_one_another(f):
    rows = np.array([[1000.0, 999.0], [-1000.0, -1001.0], [0.0, -1.0]])
    both = f(rows, axis=1).numpy()
    for row, y in zip(rows, both):
        np.testing.assert_allclose(y, f(row, axis=0).numpy(), rtol=1e-15)
    assert np.isfinite(both).all()


def test_labels_of_rows_of_very_different_size_cost_what_they_cost_alone():
    rows, labels = np.array([[1000.0, 999.0], [-1000.0, -1001.0]]), np.array([0, 1])
    alone = [ops.cross_entropy(rows[i : i + 1], labels[i : i + 1]).item() for i in (0, 1)]
    assert ops.cross_entropy(rows, labels).item() == pytest.approx(sum(alone) / 2, rel=1e-15)


@pytest.mark.parametrize("f", [ops.summation, ops.mean, ops.max, ops.min, ops.prod, ops.any])
@pytest.mark.parametrize("keepdims", [False, True])
def test_no_axes_are_not_all_axes(f, keepdims):
    (a,) = numbers(lambda rng, shape: rng.normal(size=shape), [(2, 3)])
    y = f(Tensor(a), axis=(), keepdims=keepdims)
    np.testing.assert_array_equal(y.numpy(), a.astype(bool) if f is ops.any else a)
    if f is not ops.any:
        assert gradcheck(lambda x: f(x, axis=()), [a])


def test_the_deviation_of_constants_divides_by_nothing_on_the_way_back():
    x = Tensor([2.0, 2.0], requires_grad=True)
    with np.errstate(all="raise"):
        (g,) = grad(ops.std(x), x)
    assert g.tolist() == [0.0, 0.0]


def test_where_all_is_dropped_nothing_is_left_and_nothing_is_divided_by_0():
    x, keep = Tensor([1.0, -2.0], requires_grad=True), np.zeros(2, dtype=bool)
    y = ops.dropout(x, keep, p=1.0)
    assert y.tolist() == [0.0, 0.0] == grad(y.sum(), x)[0].tolist()


def test_where_a_deviation_underflows_to_0_its_gradient_is_0(torch):
    for row in ([1e-200, 3e-200], [-1.0, 1.0]):
        x = Tensor(np.array(row), requires_grad=True)
        theirs = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        ops.std(x, correction=0).backward(1e200)
        torch.std(theirs, correction=0).backward(torch.tensor(1e200, dtype=torch.float64))
        np.testing.assert_allclose(x.grad.numpy(), theirs.grad.numpy(), rtol=1e-14)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "row, ord", [([1.0, 0.0], 2), ([0.0, -1.0], 3), ([np.inf, np.inf], -1), ([np.inf] * 2, -2)]
)
def test_a_norm_of_1_or_of_reciprocals_that_vanish(row, ord, torch):
    theirs = lambda x: torch.linalg.vector_norm(x, ord)
    assert ops.norm(row, ord).item() == theirs(torch.tensor(row)).item()


@pytest.mark.parametrize("ord", [1.5, 2, 2.5, 3])
def test_the_second_derivative_of_a_norm_of_zeros_is_no_nan(ord):
    x = Tensor(np.zeros(3), requires_grad=True)
    (first,) = grad(ops.norm(x, ord), x, create_graph=True)
    (second,) = grad((first * np.array([1.0, 2.0, 3.0])).sum(), x)
    assert np.isfinite(second.numpy()).all()


@pytest.mark.parametrize("ord", [2, 2.5, 3, 4])
def test_the_second_derivative_of_a_norm_beside_a_zero(ord):
    x = Tensor([0.0, 2.0, -1.0], dtype="float64", requires_grad=True)
    (first,) = grad(ops.norm(x, ord), x, create_graph=True)
    (second,) = grad(first[0], x)  # flat at 0, but for the length of a vector
    assert second.tolist() == pytest.approx([5**-0.5 if ord == 2 else 0.0, 0.0, 0.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mean_over_no_labels_is_no_number_and_nothing_is_divided_by_0(dtype):
    z = Tensor(np.ones((2, 3), dtype), requires_grad=True)
    with np.errstate(all="raise"):
        loss = ops.cross_entropy(z, Tensor([7, 7]), ignore_index=7)
        loss.backward()
    assert np.isnan(loss.item()) and loss.dtype == dtype and z.grad.dtype == dtype
    assert not z.grad.numpy().any()


# ---- shapes ----


@pytest.mark.parametrize("a, b", [(2.0, [1.0, 2.0]), ([[1.0]], 2.0), (2.0, 3.0)])
def test_a_number_is_no_factor_of_a_matrix_product(a, b):
    with pytest.raises(RuntimeError, match="at least one axis on each side"):
        Tensor(a) @ Tensor(b)


@pytest.mark.parametrize("f", [ops.tril, ops.triu])
def test_a_vector_has_no_triangle(f):
    with pytest.raises(RuntimeError, match="a triangle needs"):
        f(Tensor([1.0, 2.0]))


def test_a_vector_can_be_padded_by_one_pair_of_its_own():
    assert ops.pad([1.0], ((1, 2),)).tolist() == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("f", [ops.argsort, ops.sort, ops.topk])
def test_a_single_number_is_sorted_along_no_further_axis(f):
    with pytest.raises(IndexError):
        f(Tensor(3.0), **({"k": 1} if f is ops.topk else {}), axis=1)


def test_a_draw_may_be_a_bare_array_also_where_derivatives_are_recorded():
    x, draw = Tensor(np.ones((3, 4)), requires_grad=True), np.array([7, 3], "uint64")
    y = ops.dropout_by_draw(x, draw, p=0.5)
    (g,) = grad((y * y).sum(), x, create_graph=True)
    (h,) = grad(g.sum(), x)
    assert np.array_equal(g.detach(), 2 * y.detach() * (y.detach() != 0) * 2)
    assert np.array_equal(h, 8 * keep_mask((3, 4), 0.5, 7, 3))
