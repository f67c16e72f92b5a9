"Anomaly mode names who made the first NaN or infinity, where, and in which module."

import numpy as np
import pytest

import minima as mi
from minima import nn
from minima import operators as ops
from minima.autograd import Tensor, detect_anomaly, grad, op

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def line_of(function):
    "The file and the line right below the head of `function`, as the error writes them."
    return f"{__file__}, line {function.__code__.co_firstlineno + 1}, in {function.__name__}"


def found(function, **options):
    with pytest.raises(RuntimeError) as caught, detect_anomaly(**options):
        function()
    return str(caught.value)


def test_the_operation_and_the_line_are_named():
    def run():
        return ops.exp(ops.log(Tensor([1.0, 0.0])) * 2) + 1

    text = found(run)
    assert text.startswith("log((2,)): made the first inf") and line_of(run) in text
    assert "return ops.exp(ops.log(Tensor([1.0, 0.0])) * 2) + 1" in text


def test_what_was_bad_before_is_told_from_what_was_made():
    assert "multiply((1,), (1,)): was handed nan in `b`" in found(
        lambda: Tensor([1.0]) * Tensor([np.nan])
    )
    assert "was handed inf in `b`" in found(lambda: Tensor([1.0]) * np.inf)
    assert "concat" in (text := found(lambda: ops.concat([Tensor([1.0]), Tensor([np.nan])])))
    assert "was handed nan in 1" in text


class Divides(nn.Module):
    def forward(self, x):
        return x / (x - x)


class Roots(nn.Module):
    def __init__(self):
        self.w = nn.Parameter([0.0])

    def forward(self, x):
        return x * ops.sqrt(self.w)


def test_the_module_at_work_is_named_on_the_way_forward():
    model = nn.Sequential(nn.Linear(2, 2), nn.Residual(nn.Sequential(nn.Identity(), Divides())))
    text = found(lambda: model(Tensor([[1.0, 2.0]])))
    assert text.startswith("divide((1, 2), (1, 2)): made the first inf")
    assert text.endswith("(in Divides '1.fn.1')")


def test_the_module_and_the_line_of_the_way_forward_are_named_on_the_walk_back():
    model = nn.Sequential(nn.Linear(2, 2), Roots())
    text = found(lambda: model(Tensor([[1.0, 2.0]])).sum().backward())
    assert text.startswith("the walk back through sqrt, to `a`, made the first inf")
    assert f"in {Roots.forward.__name__}: return x * ops.sqrt(self.w)" in text
    assert text.endswith("(in Roots '1')")


def test_a_bad_gradient_that_arrives_is_told_from_one_that_is_made():
    x = Tensor([1.0], requires_grad=True)
    assert "was handed nan in the gradient that arrived" in found(
        lambda: ops.exp(x).backward(np.array([np.nan]))
    )


def test_either_kind_can_be_let_through():
    log0, nan = lambda: ops.log(Tensor([0.0])), lambda: ops.log(Tensor([-1.0]))
    with detect_anomaly(check_inf=False):
        log0()
    with detect_anomaly(check_nan=False):
        nan()
    assert "first nan" in found(nan, check_inf=False)
    assert "first inf" in found(log0, check_nan=False)


def test_numbers_that_are_none_of_its_business_pass():
    with detect_anomaly():
        assert (Tensor([1, 2]) * 3).tolist() == [3, 6]
        assert ops.isnan(Tensor([1.0])).tolist() == [False]
        x = Tensor([1.0, 2.0], requires_grad=True)
        (g,) = grad((x**3).sum(), x, create_graph=True)
        assert grad(g.sum(), x)[0].tolist() == [6.0, 12.0]


def test_afterwards_all_is_as_before_also_after_an_error_and_nested():
    found(lambda: ops.log(Tensor([0.0])))
    with detect_anomaly():
        with detect_anomaly(check_inf=False):
            ops.log(Tensor([0.0]))
        found(lambda: ops.log(Tensor([0.0])))
        assert "first inf" in found(lambda: ops.log(Tensor([0.0])))
        with pytest.raises(RuntimeError, match="made the first"):
            ops.log(Tensor([0.0]))
    assert ops.log(Tensor([0.0])).item() == -np.inf


def test_it_decorates_functions_that_call_themselves():
    @detect_anomaly(check_nan=False)
    def countdown(x, n):
        return countdown(ops.log(x), n - 1) if n else x

    with pytest.raises(RuntimeError, match="made the first inf"):
        countdown(Tensor([1.0]), 2)
    assert np.isnan(ops.log(Tensor([-1.0])).item())
    assert ops.log(Tensor([0.0])).item() == -np.inf


def test_operations_of_ones_own_and_kernels_are_watched():
    @op
    def inverse(xp, a):
        return 1 / a, lambda g: -g / (a * a)

    assert "inverse((1,)): made the first inf" in found(lambda: inverse(Tensor([0.0])))

    @inverse.kernel("cpu")
    def kernel(xp, a):
        return a * xp.nan, lambda g: g

    assert "inverse((1,)): made the first nan" in found(lambda: inverse(Tensor([1.0])))


def test_values_and_gradients_are_the_same_while_it_watches():
    x = np.random.default_rng(0).normal(size=(5, 4))
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm1d(8), nn.GELU(), nn.Linear(8, 3)).to(
        "float64"
    )

    def gradients():
        model.zero_grad()
        loss = nn.CrossEntropyLoss()(model(Tensor(x)), Tensor([0, 1, 2, 1, 0]))
        loss.backward()
        return [loss.item(), *(p.grad.tolist() for p in model.parameters())]

    plain = gradients()
    with mi.autograd.detect_anomaly():
        assert gradients() == plain
