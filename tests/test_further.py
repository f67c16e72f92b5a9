"Functions made of functions, methods under PyTorch's names, and what is found at the top."

import numpy as np
import pytest

import minima as mi
from minima import operators as ops
from minima.autograd import ShapeError, Tensor
from minima.testing import vs_torch

RNG = np.random.default_rng(0)
INF, NAN = float("inf"), float("nan")


def normal(*shape):
    return RNG.normal(size=shape)


METHODS = [
    (lambda t: t.expand(2, -1, 4), (2, 3, 1)),
    (lambda t: t.expand((5, 2, 3)), (2, 3)),
    (lambda t: t.expand(3, 2), ()),
    (lambda t: t.view(3, 2), (2, 3)),
    (lambda t: t.view(-1), (2, 3)),
    (lambda t: t.view_as(t.sum(0)[:1].expand(2, 3)), (2, 3)),
    (lambda t: t.expand_as(t * t), (2, 3)),
    (lambda t: t.clamp(-0.5, 0.5), (4,)),
    (lambda t: t.clamp(min=0.1), (4,)),
    (lambda t: t.amax(1), (2, 3)),
    (lambda t: t.amin(-1), (2, 3)),
    (lambda t: t.mul(2).add(t).sub(1).div(3).neg().pow(2), (2, 3)),
    (lambda t: t.mm(t.t()), (2, 3)),
    (lambda t: t.bmm(t.movedim(1, 2)), (4, 2, 3)),
    (lambda t: t % 0.3, (7,)),
    (lambda t: t.unsqueeze(1).contiguous().cpu(), (3,)),
]  # fmt: skip


@pytest.mark.parametrize("function, shape", METHODS)
def test_methods_as_in_torch(function, shape, torch):
    numbers = normal(*shape)
    vs_torch(function, function, [numbers], rtol=1e-12)


SPECIAL = np.array([INF, -INF, NAN, 0.0, 1.0, 1.0 + 1e-7])


def test_close_as_in_torch(torch):
    a, b = (x.reshape(-1) for x in np.meshgrid(SPECIAL, SPECIAL))
    for options in ({}, {"equal_nan": True}, {"rtol": 1e-9, "atol": 0.0}, {"rtol": 0, "atol": 2}):
        theirs = torch.isclose(torch.tensor(a), torch.tensor(b), **options)
        assert ops.isclose(Tensor(a), Tensor(b), **options).tolist() == theirs.tolist()
        for i in range(len(a)):
            pair = a[i : i + 1], b[i : i + 1]
            assert Tensor(pair[0]).allclose(Tensor(pair[1]), **options) is theirs[i].item()


def test_integers_can_be_close():
    assert ops.isclose(Tensor([1, 2]), Tensor([1, 3])).tolist() == [True, False]


@pytest.mark.parametrize("name", ["floor_divide", "remainder"])
def test_division_with_remainder_as_in_torch(name, torch):
    a, b = np.array([7, -7, 7, -7, 0]), np.array([2, 2, -2, -2, 3])
    for dtype in ("int64", "float32", "float64"):
        x, y = a.astype(dtype), b.astype(dtype)
        ours = getattr(ops, name)(Tensor(x), Tensor(y))
        theirs = getattr(torch, name)(torch.tensor(x), torch.tensor(y))
        assert ours.tolist() == theirs.tolist() and str(theirs.dtype) == f"torch.{ours.dtype}"
    assert (7 // Tensor([2])).tolist() == [3] and (Tensor([7.5]) % 2).tolist() == [1.5]


def test_logaddexp_at_infinities_as_in_torch(torch):
    a, b = (x.reshape(-1) for x in np.meshgrid(SPECIAL[:2], SPECIAL[[0, 1, 3]]))
    theirs = torch.logaddexp(torch.tensor(a), torch.tensor(b)).tolist()
    assert ops.logaddexp(Tensor(a), Tensor(b)).tolist() == theirs


def test_in_place_methods_write_and_return_the_tensor():
    t = Tensor([[1.0, 2.0], [3.0, 4.0]])
    array = t.array
    assert t.zero_() is t and array.tolist() == [[0, 0], [0, 0]]
    assert t.fill_(3.0) is t and array.tolist() == [[3, 3], [3, 3]]
    assert t.copy_(Tensor([1, 2])) is t and array.tolist() == [[1, 2], [1, 2]]
    w = Tensor([1.0], requires_grad=True)
    for write in (w.zero_, lambda: w.fill_(1), lambda: w.copy_([2.0])):
        with pytest.raises(RuntimeError, match="would lose gradients"):
            write()


def test_small_questions():
    t = Tensor(np.zeros((2, 3)))
    assert (t.dim(), t.numel()) == (2, 6)
    assert t.type_as(Tensor([1])).dtype == "int64"
    with pytest.raises(RuntimeError, match="cuda|CuPy"):
        t.cuda()


@pytest.mark.parametrize(
    "attempt, text",
    [
        (lambda t: t.expand(3, 3), "expand|broadcast"),
        (lambda t: t.mm(t[0]), "two tensors with 2 axes"),
        (lambda t: t.bmm(t), "3 axes"),
        (lambda t: t.unsqueeze(0).bmm(ops.stack([t, t])), "batches of one size"),
        (lambda t: t.unsqueeze(0).t(), "at most 2 axes"),
        (lambda t: t[0].trace(), "a matrix"),
    ],
)
def test_mistakes_are_explained(attempt, text):
    with pytest.raises(ShapeError, match=text):
        attempt(Tensor(np.zeros((2, 3))))


def test_operations_and_ways_to_begin_are_found_at_the_top():
    assert mi.exp is ops.exp and mi.stack is ops.stack and mi.zeros is mi.init.zeros
    assert mi.arange(3).tolist() == [0, 1, 2]  # ours, not what rules call by this name
    assert mi.ones_like(Tensor([1.0])).tolist() == [1.0]
    assert mi.cat is ops.concat and mi.mul is ops.multiply and mi.clamp is ops.clip
    for name in ("nonsense", "sys", "np", "_DTYPES_"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(mi, name)


@pytest.mark.parametrize("name", ["float16", "float32", "double", "half", "long", "uint8", "bool"])
def test_dtypes_are_found_at_the_top(name, torch):
    dtype = getattr(mi, name)
    assert mi.zeros(2, dtype=dtype).dtype == dtype
    assert str(getattr(torch, name)) == f"torch.{dtype.name}"
