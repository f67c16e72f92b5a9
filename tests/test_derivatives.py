"Products with Jacobians, and the matrices, against PyTorch; then their corners."

import numpy as np
import pytest

import minima as mi
from minima import operators as ops
from minima.autograd import functional, jacobian, jvp, vjp
from minima.autograd import hessian as hess
from minima.autograd import hvp as times_hessian

RNG = np.random.default_rng(0)


def mixed(m, x, y):
    "Two outputs of two inputs; `m` is torch, or our operators."
    return m.tanh(x @ y), (x * x).sum(1)


def reduced(m, x, y):
    return (m.exp(x @ y) * y[:, :2].sum()).sum() + (x**3).sum()


FUNCTIONS = {
    "one to one": (lambda m, x: m.sin(x) * x, [(2, 3)]),
    "to a number": (lambda m, x: (x * x).sum(), [(4,)]),
    "from a number": (lambda m, x: m.stack([x, x * x]), [()]),
    "two to two": (mixed, [(2, 3), (3, 4)]),
    "through a view": (lambda m, x: x.T[1:] * x[:2, 0], [(2, 3)]),
    "one of two unused": (lambda m, x, y: m.exp(x), [(2,), (3,)]),
}
NUMBERS = {
    "cubes": (lambda m, x: (x**3).sum(), [(4,)]),
    "two inputs": (reduced, [(2, 3), (3, 4)]),
    "no curvature": (lambda m, x: x.sum(), [(2, 2)]),
    "logsumexp": (lambda m, x: m.logsumexp(x, 0), [(5,)]),
}


def arrays(shapes):
    return [RNG.normal(size=shape) for shape in shapes]


def packed(things):
    return tuple(things) if len(things) > 1 else things[0]


def flat(nest):
    "The numbers in a nest of tuples of ours or of theirs, with their shapes."
    if isinstance(nest, tuple):
        return [leaf for part in nest for leaf in flat(part)]
    return [nest.detach().numpy()]


def agree(ours, theirs):
    assert isinstance(ours, tuple) == isinstance(theirs, tuple)
    ours, theirs = flat(ours), flat(theirs)
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def ours(f):
    return lambda *xs: f(ops, *xs)


def theirs(torch, f):
    return lambda *xs: f(torch, *xs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_and_jacobians_are_those_of_torch(torch, name):
    f, shapes = FUNCTIONS[name]
    a = arrays(shapes)
    x, t = packed([mi.Tensor(n) for n in a]), packed([torch.tensor(n) for n in a])
    T = torch.autograd.functional
    out = f(torch, *(t if isinstance(t, tuple) else (t,)))
    v = arrays([o.shape for o in (out if isinstance(out, tuple) else (out,))])
    w = arrays(shapes)
    agree(
        vjp(ours(f), x, packed(v)), T.vjp(theirs(torch, f), t, packed([torch.tensor(n) for n in v]))
    )
    agree(
        jvp(ours(f), x, packed(w)), T.jvp(theirs(torch, f), t, packed([torch.tensor(n) for n in w]))
    )
    agree(jacobian(ours(f), x), T.jacobian(theirs(torch, f), t))


@pytest.mark.parametrize("name", NUMBERS)
def test_hessians_are_those_of_torch(torch, name):
    f, shapes = NUMBERS[name]
    a, w = arrays(shapes), arrays(shapes)
    x, t = packed([mi.Tensor(n) for n in a]), packed([torch.tensor(n) for n in a])
    T = torch.autograd.functional
    agree(hess(ours(f), x), T.hessian(theirs(torch, f), t))
    agree(
        times_hessian(ours(f), x, packed(w)),
        T.hvp(theirs(torch, f), t, packed([torch.tensor(n) for n in w])),
    )


def test_results_can_be_differentiated_with_create_graph(torch):
    a, v = arrays([(3,)])[0], arrays([(3,)])[0]
    T = torch.autograd.functional
    cube = lambda x: x**3

    def second(jacobian_of, product_of, x, v):
        total = jacobian_of(cube, x, create_graph=True).sum()
        return total + (product_of(cube, x, v, create_graph=True)[1] ** 2).sum()

    x = mi.Tensor(a, requires_grad=True)
    t = torch.tensor(a, requires_grad=True)
    second(jacobian, jvp, x, mi.Tensor(v)).backward()
    second(T.jacobian, T.jvp, t, torch.tensor(v)).backward()
    np.testing.assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-12)
    x.grad = None
    hess(lambda x: (x**4).sum(), x, create_graph=True).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 24 * a, rtol=1e-12)


def test_without_create_graph_results_are_leaves_and_nothing_is_touched():
    x = mi.Tensor([1.0, 2.0], requires_grad=True)
    square = lambda x: x * x
    results = [*vjp(square, x, x), *jvp(square, x, x), jacobian(square, x)]
    results += [hess(lambda x: square(x).sum(), x), *times_hessian(lambda x: square(x).sum(), x, x)]
    assert all(t.is_leaf and not t.requires_grad for t in results)
    assert x.grad is None and x.is_leaf


def test_they_work_inside_no_grad():
    with mi.no_grad():
        assert jacobian(lambda x: x * x, mi.Tensor([3.0])).tolist() == [[6.0]]


def test_what_does_not_depend_is_zero_or_with_strict_an_error():
    x, y = mi.Tensor([1.0, 2.0]), mi.Tensor([3.0])
    constant = lambda x, y: x * 2
    assert jacobian(constant, (x, y))[1].tolist() == [[0.0], [0.0]]
    assert jvp(lambda x: mi.Tensor([5.0]), x, x)[1].tolist() == [0.0]
    for function in (jacobian, lambda *a, **k: vjp(*a, v=x, **k)):
        with pytest.raises(RuntimeError, match=r"does not depend on inputs \[1\]"):
            function(constant, (x, y), strict=True)


def test_an_empty_output_has_an_empty_jacobian():
    assert jacobian(lambda x: x[:0], mi.Tensor([1.0, 2.0])).shape == (0, 2)


@pytest.mark.parametrize(
    "attempt, error, text",
    [
        (lambda x: vjp(lambda x: x, x), RuntimeError, "v is needed"),
        (lambda x: jvp(lambda x: x, x), RuntimeError, "v is needed"),
        (lambda x: vjp(lambda x: x, x, mi.Tensor([1.0])), RuntimeError, "v should be like"),
        (lambda x: jacobian(lambda x: x, [1.0]), TypeError, "inputs should be Tensors"),
        (lambda x: jacobian(lambda x: 3, x), TypeError, "returns should be Tensors"),
        (lambda x: hess(lambda x: x, x), RuntimeError, "single number"),
        (lambda x: times_hessian(lambda x: x, x, x), RuntimeError, "single number"),
        (lambda x: jacobian(lambda x: x, mi.Tensor([1])), RuntimeError, "floating"),
    ],
)
def test_mistakes_are_explained(attempt, error, text):
    with pytest.raises(error, match=text):
        attempt(mi.Tensor([1.0, 2.0]))


def test_the_names_are_where_people_look():
    assert mi.jacobian is mi.autograd.jacobian is functional.jacobian
