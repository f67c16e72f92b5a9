"Clipping, beside PyTorch; gradients stay the same arrays; what can be told early."

import warnings
from math import inf, nan

import numpy as np
import pytest

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima.autograd import tensor
from minima.nn import Linear
from minima.optim import clip_grad_norm_, clip_grad_value_

SHAPES = [(), (3,), (1, 4), (5, 3)]
RTOL = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-12}


def both(torch, dtype, scale=1.0, shapes=SHAPES, seed=0):
    "The same parameters with the same random gradients, here and in torch; one has none."
    rng = np.random.default_rng(seed)
    ours, theirs = [], []
    for shape in shapes:
        g = np.asarray(scale * rng.normal(size=shape), dtype)
        ours.append(tensor(np.ones(shape), dtype=dtype, requires_grad=True))
        theirs.append(torch.tensor(np.ones(shape, dtype), requires_grad=True))
        ours[-1].grad, theirs[-1].grad = tensor(g), torch.tensor(g)
    ours.append(tensor([1.0], dtype=dtype, requires_grad=True))
    theirs.append(torch.tensor(np.ones(1, dtype), requires_grad=True))
    return ours, theirs


def agree(ours, theirs):
    "Gradients here are those of torch."
    for p, t in zip(ours, theirs, strict=True):
        assert (p.grad is None) == (t.grad is None)
        if p.grad is not None:
            assert p.grad.dtype == t.grad.numpy().dtype
            rtol = RTOL[p.dtype.name]
            np.testing.assert_allclose(p.grad.numpy(), t.grad.numpy(), rtol=rtol, atol=rtol * 1e-3)


def with_gradients(*gradients, dtype="float64"):
    "Parameters with these gradients."
    params = [tensor(np.ones(np.shape(g)), dtype=dtype, requires_grad=True) for g in gradients]
    for p, g in zip(params, gradients):
        p.grad = tensor(g, dtype=dtype)
    return params


# ---- as in torch ----


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("kind", [2, 2.0, 1, 3, 0.5, -1, 0, inf, -inf])
@pytest.mark.parametrize("max_norm", [0, 0.1, 1, 1000.0])
def test_norms_and_scaled_gradients_are_those_of_torch(torch, dtype, kind, max_norm):
    ours, theirs = both(torch, dtype)
    mine = clip_grad_norm_(ours, max_norm, kind)
    other = torch.nn.utils.clip_grad_norm_(theirs, max_norm, kind)
    assert mine.dtype == dtype == other.numpy().dtype and mine.shape == ()
    np.testing.assert_allclose(mine.item(), other.item(), rtol=RTOL[dtype])
    agree(ours, theirs)


def test_the_norm_is_2_unless_asked(torch):
    ours, theirs = both(torch, "float64")
    assert clip_grad_norm_(ours, 0.5).item() == pytest.approx(
        torch.nn.utils.clip_grad_norm_(theirs, 0.5).item(), rel=1e-12
    )
    agree(ours, theirs)


@pytest.mark.parametrize("gradients", [([0.0, 1.0, 2.0], [0.0]), ([0.0, 0.0], [3.0]), ([0.0],)])
def test_the_norm_of_kind_0_counts_what_is_not_zero_as_in_torch(torch, gradients):
    ours = with_gradients(*gradients)
    theirs = [torch.nn.Parameter(torch.ones(len(g))) for g in gradients]
    for p, g in zip(theirs, gradients):
        p.grad = torch.tensor(g)
    mine = clip_grad_norm_(ours, 1.0, 0)
    assert mine.item() == torch.nn.utils.clip_grad_norm_(theirs, 1.0, 0).item()


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("bound", [0, 0.5, 2.0, inf])
def test_bounded_values_are_those_of_torch(torch, dtype, bound):
    ours, theirs = both(torch, dtype)
    ours[1].grad.array[0] = theirs[1].grad.numpy()[0] = nan
    assert clip_grad_value_(ours, bound) is None
    torch.nn.utils.clip_grad_value_(theirs, bound)
    agree(ours, theirs)


def test_gradients_of_several_dtypes_are_scaled_together_as_in_torch(torch):
    (a, b), (c, d) = (both(torch, dtype, shapes=[(3, 2)]) for dtype in ("float32", "float64"))
    ours, theirs = a + c, b + d
    mine, other = clip_grad_norm_(ours, 0.5), torch.nn.utils.clip_grad_norm_(theirs, 0.5)
    assert mine.dtype == other.numpy().dtype == "float64"
    assert mine.item() == pytest.approx(other.item(), rel=1e-6)
    agree(ours, theirs)


@pytest.mark.parametrize("numbers", [[inf, 1.0], [nan, 1.0], [-inf, inf], [1e30, 1.0]])
def test_what_is_not_finite_goes_through_as_in_torch(torch, numbers):
    ours = with_gradients(numbers, [2.0], dtype="float32")
    theirs = [torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)]
    theirs[0].grad, theirs[1].grad = torch.tensor(numbers), torch.tensor([2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine = clip_grad_norm_(ours, 1.0)
    other = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert np.array_equal(mine.numpy(), other.numpy(), equal_nan=True)
    for p, t in zip(ours, theirs):
        assert np.array_equal(p.grad.numpy(), t.grad.numpy(), equal_nan=True)
    again = with_gradients(numbers, [2.0], dtype="float32")
    with pytest.raises(RuntimeError, match="total norm of order 2.0 .*non-finite.*it is (inf|nan)"):
        clip_grad_norm_(again, 1.0, error_if_nonfinite=True)
    for p, before in zip(again, (numbers, [2.0])):  # nothing was changed
        assert np.array_equal(p.grad.array, np.float32(before), equal_nan=True)


def test_a_finite_norm_is_no_error():
    (p,) = with_gradients([3.0, 4.0])
    assert clip_grad_norm_(p, 1.0, error_if_nonfinite=True).item() == 5


def test_16_bit_gradients_are_added_up_in_more(torch):
    (p,) = with_gradients([300.0, 400.0, 300.0], dtype="float16")
    t = torch.ones(3, dtype=torch.float16, requires_grad=True)
    t.grad = torch.tensor([300.0, 400.0, 300.0], dtype=torch.float16)
    assert clip_grad_norm_(p, 1.0).item() == torch.nn.utils.clip_grad_norm_(t, 1.0).item() == 583


# ---- which arrays ----


@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_])
@pytest.mark.parametrize("dtype", RTOL)
def test_arrays_stay_the_same_objects(clip, dtype):
    params = with_gradients(3.0, [[4.0, -5.0]], dtype=dtype)
    before = [(p.grad, p.grad.array) for p in params]
    clip(params, 1)
    for p, (grad, array) in zip(params, before):
        assert p.grad is grad and grad.array is array and array.dtype == dtype
        assert (np.abs(array) <= 1).all() and p.array.all()


def test_views_are_scaled_in_their_place():
    whole = np.arange(24.0).reshape(4, 6)
    (p,) = with_gradients(np.zeros((3, 2)))
    p.grad.array = whole[::2, 1::2].T
    outside = whole[1::2].copy()
    clip_grad_norm_(p, 1.0)
    assert np.linalg.norm(whole[::2, 1::2]) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(whole[1::2], outside)


def test_a_bound_never_makes_gradients_longer():
    (p,) = with_gradients([0.3, -0.4])
    assert clip_grad_norm_(p, 1.0).item() == 0.5 and p.grad.tolist() == [0.3, -0.4]


def test_without_gradients_the_norm_is_0():
    p = tensor([1.0], requires_grad=True)
    for params in ([], [p], p):
        assert clip_grad_norm_(params, 1.0).item() == 0
        clip_grad_value_(params, 1.0)
    assert p.grad is None


@pytest.mark.parametrize("kind", [0.5, 1, 2, inf, -inf, 0])
def test_empty_gradients_change_nothing(kind):
    alone, beside = with_gradients([3.0, 4.0]), with_gradients([3.0, 4.0], np.zeros((2, 0)))
    norms = [clip_grad_norm_(params, 1.0, kind).item() for params in (alone, beside)]
    assert norms[0] == norms[1] and alone[0].grad.tolist() == beside[0].grad.tolist()
    assert clip_grad_norm_(with_gradients(np.zeros((2, 0))), 1.0, kind).item() == 0


def test_a_parameter_or_gradient_that_is_there_twice_counts_once():
    (p,) = with_gradients([3.0, 4.0])
    (q,) = with_gradients([0.0, 0.0])
    q.grad = p.grad
    assert clip_grad_norm_([p, p, q], 1.0).item() == 5
    assert p.grad.tolist() == pytest.approx([0.6, 0.8], abs=1e-6)


def test_the_parameters_of_a_model_may_be_a_generator():
    model = Linear(3, 2)
    model(tensor(np.ones((4, 3)), dtype="float32")).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clip_grad_norm_((p for p in model.parameters()), 1e-3).item() > 1
    assert clip_grad_norm_(model.parameters(), 1).item() == pytest.approx(1e-3, rel=1e-3)


# ---- what can be told early ----


@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_])
def test_a_generator_that_is_used_up_is_told(clip):
    with pytest.warns(UserWarning, match="`parameters` is used up"):
        clip((p for p in ()), 1.0)


@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_])
@pytest.mark.parametrize("params, bound, error, message", [
    (3.0, 1.0, TypeError, r"Tensor or a list.*model.parameters\(\).*got a float"),
    (Linear(2, 2), 1.0, TypeError, r"model.parameters\(\).*got a Linear"),
    ([np.ones(2)], 1.0, TypeError, r"parameters\[0\] is a ndarray"),
    ([], -1.0, ValueError, "Invalid (max_norm|clip_value): -1.0; it must be 0 or more"),
    ([], nan, ValueError, "Invalid (max_norm|clip_value): nan"),
])  # fmt: skip
def test_what_makes_no_sense_is_told(clip, params, bound, error, message):
    with pytest.raises(error, match=message):
        clip(params, bound)
