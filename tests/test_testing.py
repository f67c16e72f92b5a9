"The checks are checked: they pass what is right, and each kind of mistake is caught and named."

import sys

import numpy as np
import pytest

from minima import operators as ops
from minima.autograd import Tensor, op, wrap
from minima.testing import gradcheck, vs_torch

RNG = np.random.default_rng(0)
A, B, ROW = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4)), RNG.normal(size=(4,))


# ---- gradcheck passes what is right ----

RIGHT = {
    "one input": (ops.tanh, [A]),
    "two, one broadcast": (ops.multiply, [A, ROW]),
    "a scalar": (lambda x: x * x, [np.array(0.7)]),
    "nothing": (ops.exp, [np.zeros((0, 3))]),
    "an index": (lambda x, i: x[i], [A, np.array([0, 2, 0])]),
    "a mask": (ops.where, [A > 0, A, B]),
    "float32": (ops.exp, [A.astype("float32")]),
    "a list": (ops.exp, [[1.0, 2.0]]),
    "Tensors": (lambda x, y: x @ y, [Tensor(A), Tensor(B.T, dtype="float32")]),
    "an unused input": (lambda x, y: x * 2, [A, B]),
    "a constant": (lambda x: Tensor(B), [A]),
    "a linear function": (lambda x: x.sum(axis=0), [A]),
    "large values": (lambda x: x + 1e4, [A]),
    "large inputs": (lambda x: x * x, [A * 1e4]),
    "small values": (lambda x: x * 1e-3, [A]),
    "a steep function": (ops.log, [np.array([0.01, 0.1, 1.0])]),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("f, inputs", RIGHT.values(), ids=RIGHT)
def test_gradcheck_passes_what_is_right(f, inputs, order):
    assert gradcheck(f, inputs, order=order) is True


def test_gradcheck_goes_to_any_order():
    assert gradcheck(lambda x, y: (x * y).exp() / x, [A + 5, B / 5], order=3, directions=1)


def test_gradcheck_leaves_its_inputs_alone():
    x, a = Tensor(A.astype("float32")), A.copy()
    a.flags.writeable = False
    gradcheck(lambda x, y: x * y, [x, a], order=2)
    assert x.dtype == "float32" and not x.requires_grad and x.grad is None


# ---- and catches what is wrong ----


@op
def wrong_sign(xp, a, b):
    return a - b, lambda g: g, lambda g: g


@op
def forgets_g(xp, a):
    y = xp.exp(a)
    return y, lambda g: y


@op
def squares_g(xp, a):
    return a * 1, lambda g: g * g


@op
def halved(xp, a):
    return a * a, lambda g: g * a


@op
def lacks_a_term(xp, a):
    y = xp.exp(a)
    return a * y, lambda g: g * y


@op
def lacks_a_pullback(xp, a, b):
    return a * b, lambda g: g * b


@op
def transposed(xp, a):
    return a * a, lambda g: 2 * a * xp.swapaxes(g, 0, 1)


@op
def one_element(xp, a):
    here = xp.reshape(xp.arange(12), (3, 4)) == 7
    return a * 3, lambda g: xp.where(here, 3.001 * g, 3 * g)


@op
def permuted(xp, a):
    return xp.exp(a), lambda g: g * xp.exp(xp.flip(a, axis=0))


@op
def slightly(xp, a):
    return xp.sin(a), lambda g: g * xp.cos(a) * (1 + 1e-5)


@op
def by_float32(xp, a):
    return xp.exp(a), lambda g: g * xp.exp(xp.astype(a, "float32"))


def cut(x):
    return x * wrap(x.array)


WRONG = {
    "sign": (wrong_sign, [A, B], "input 1.*sign"),
    "forgotten g": (forgets_g, [A], "input 0.*forgets g"),
    "g used twice": (squares_g, [A], "input 0.*forgets g"),
    "factor": (halved, [A], "a constant.* 0.5 times"),
    "missing term": (lacks_a_term, [A], "a term of the derivative"),
    "missing pullback": (lacks_a_pullback, [A, B], "input 1.*graph is cut"),
    "detached": (cut, [A], "input 0"),
    "detached, all of it": (lambda x: ops.exp(x.detach()), [A], "graph is cut"),
    "transposed": (transposed, [A[:, :3]], "a term of the derivative"),
    "one element in twelve": (one_element, [A], "a term of the derivative"),
    "the wrong elements": (permuted, [A], "a term of the derivative"),
    "by a hundred-thousandth": (slightly, [A], "a constant.*1.00001 times"),
    "a kink": (ops.relu, [np.zeros(3)], "kink"),
    "a kink nearby": (ops.abs, [np.full(3, 2e-5)], "kink"),
    "a jump": (lambda x: ops.where(x > 0, x + 1, x), [np.zeros(3)], "kink or a jump"),
    "not finite": (lambda x: ops.log(x), [np.zeros(3)], "not finite"),
}


@pytest.mark.parametrize("f, inputs, cause", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradcheck_catches_and_names_a_mistake(f, inputs, cause, seed):
    with pytest.raises(AssertionError, match="(?s)" + cause):
        gradcheck(f, inputs, seed=seed)


def test_a_cotangent_of_ones_would_not_see_that_g_is_forgotten():
    x = Tensor(A, requires_grad=True)
    forgets_g(x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.exp(A))
    with pytest.raises(AssertionError):
        gradcheck(forgets_g, [A])


@op
def frozen(xp, a):
    slope = 3 * a * a
    slope = slope.detach() if isinstance(slope, Tensor) else slope
    return a * a * a, lambda g: g * slope


@op
def ignores_g_later(xp, a):
    return a * a, lambda g: 2 * a * (g.detach() if isinstance(g, Tensor) else g)


@op
def two_faced(xp, a):
    slope = 2 * a if isinstance(a, Tensor) else 1.0
    return a * 1, lambda g: g * slope


@pytest.mark.parametrize("f, message", [
    (frozen, "gradient of the gradient by input 0.*graph is cut"),
    (ignores_g_later, "gradient of the gradient by cotangent.*graph is cut"),
    (two_faced, "create_graph=True gives another gradient by input 0"),
])  # fmt: skip
def test_gradcheck_of_second_order_catches_what_the_first_does_not(f, message):
    assert gradcheck(f, [A])
    with pytest.raises(AssertionError, match="(?s)" + message):
        gradcheck(f, [A], order=2)


def test_the_message_names_place_and_numbers():
    with pytest.raises(AssertionError) as caught:
        gradcheck(wrong_sign, [A, B])
    first = str(caught.value)
    for part in ("gradient by input 1", "shape (3, 4)", "direction 1", "derived", "measured"):
        assert part in first
    with pytest.raises(AssertionError) as caught:
        gradcheck(wrong_sign, [A, B])
    assert str(caught.value) == first  # the same seed, the same numbers


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tolerance_and_step_can_be_chosen():
    assert gradcheck(by_float32, [A]) and gradcheck(ops.exp, [A], rtol=1e-9, atol=0)
    with pytest.raises(AssertionError, match="a term of the derivative"):
        gradcheck(by_float32, [A], rtol=1e-9)
    assert gradcheck(slightly, [A], rtol=1e-4)
    assert gradcheck(one_element, [A], atol=1.0)
    x = np.array([1e-5, 1.0])
    with pytest.raises(AssertionError):
        gradcheck(ops.log, [x])  # the step would take it across zero
    assert gradcheck(ops.log, [x], eps=1e-8, rtol=1e-4)


def test_a_function_that_changes_between_calls_is_not_checked():
    rng = np.random.default_rng(0)
    with pytest.raises(AssertionError, match="not the same twice"):
        gradcheck(lambda x: x * rng.normal(), [A])


@pytest.mark.parametrize("f, inputs, error", [
    (lambda i: i * 2, [np.arange(3)], ValueError),
    (lambda x: x > 0, [A], TypeError),
])  # fmt: skip
def test_what_has_no_gradient_is_not_checked(f, inputs, error):
    with pytest.raises(error, match="gradient"):
        gradcheck(f, inputs)


# ---- parameters ----


class Affine:
    "A layer as a minima module would be."

    def __init__(self, n_in, n_out, dtype="float32"):
        rng = np.random.default_rng(1)
        self.weight = Tensor(rng.normal(size=(n_in, n_out)), dtype=dtype, requires_grad=True)
        self.bias = Tensor(rng.normal(size=(1, n_out)), dtype=dtype, requires_grad=True)

    def named_parameters(self):
        yield "weight", self.weight
        yield "bias", self.bias

    def __call__(self, x):
        return ops.linear(x, self.weight, self.bias).tanh()


def state(layer):
    return [(p.array, p.dtype, p.requires_grad, p.grad) for _, p in layer.named_parameters()]


def same(a, b):
    return all(x is y or x == y for p, q in zip(a, b) for x, y in zip(p, q))


def test_gradcheck_perturbs_parameters_and_leaves_them_as_they_were():
    layer = Affine(4, 2)
    layer.bias.requires_grad = False
    before = state(layer)
    assert gradcheck(layer, [A], params=(p for _, p in layer.named_parameters()), order=2)
    assert same(state(layer), before)


def test_gradcheck_catches_a_wrong_gradient_of_a_parameter_and_still_tidies_up():
    layer = Affine(4, 4)
    before = state(layer)
    wrong = lambda x: wrong_sign(x, layer.bias)
    with pytest.raises(AssertionError, match="parameter 1, shape"):
        gradcheck(wrong, [A], params=[layer.weight, layer.bias])
    assert same(state(layer), before)


def test_gradcheck_of_a_module_takes_its_parameters_and_names_them():
    layer = Affine(4, 2)
    before = state(layer)
    assert gradcheck(layer, [A], order=2) and same(state(layer), before)

    class Wrong(Affine):
        def __call__(self, x):
            return wrong_sign(x, self.bias)

    with pytest.raises(AssertionError, match="parameter bias, shape"):
        gradcheck(Wrong(4, 4), [A])


def test_gradcheck_leaves_buffers_as_they_were():
    norm = Norm(0.1, "float32")
    assert gradcheck(norm, [A], order=2)
    assert norm.running_mean.dtype == "float32" and norm.running_mean.tolist() == [0.0] * 4
    assert norm.steps.item() == 0


def test_gradcheck_of_parameters_alone():
    layer, x = Affine(4, 2), Tensor(A)
    assert gradcheck(lambda: layer(x), [], params=[layer.weight, layer.bias])


# ---- vs_torch, functions ----


def test_vs_torch_returns_and_prints_the_differences(torch, capsys):
    found = vs_torch(ops.multiply, torch.multiply, [A, ROW])
    assert [*found] == ["output", "gradient of input 0", "gradient of input 1"]
    assert all(difference < 1e-14 for difference in found.values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len({line.index("(") for line in lines}) == 1
    vs_torch(ops.multiply, torch.multiply, [A, ROW], verbose=False)
    assert capsys.readouterr().out == ""


MISTAKES = {
    "value": (lambda x: x * 2, lambda torch, x: x * 2.001, "output differs"),
    "gradient": (forgets_g, lambda torch, x: x.exp(), "gradient of input 0 differs"),
    "shape": (lambda x: x.sum(axis=0), lambda torch, x: x.sum(0, keepdim=True), r"\(4,\), not"),
    "no gradient here": (lambda x: x.detach(), lambda torch, x: x, "requires_grad is False"),
    "no gradient there": (lambda x: x * 1, lambda torch, x: x.detach(), "requires_grad is True"),
    "half a gradient": (lambda x: x * x.detach(), lambda torch, x: x * x, "gradient of input 0"),
    "nan here": (lambda x: x * np.nan, lambda torch, x: x, "output differs by nan"),
    "nan there": (lambda x: x * 1, lambda torch, x: x * np.nan, "output differs by nan"),
    "infinity": (lambda x: x * np.inf, lambda torch, x: x * -np.inf, "output differs by inf"),
    "dtype": (lambda x: x > 0, lambda torch, x: (x > 0).int(), "bool .*, not int32"),
    "kind": (lambda x: x.argmax(0), lambda torch, x: x.argmin(0), "output differs"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ours, theirs, message", MISTAKES.values(), ids=MISTAKES)
def test_vs_torch_catches(ours, theirs, message, dtype, torch):
    with pytest.raises(AssertionError, match=message):
        vs_torch(ours, lambda x: theirs(torch, x), [A], dtype=dtype, verbose=False)


def test_vs_torch_names_all_that_differs(torch):
    with pytest.raises(AssertionError, match="output .*; gradient of input 1"):
        vs_torch(lambda x, y: x - y, lambda x, y: x + y, [A, B], verbose=False)


@pytest.mark.parametrize(
    "dtype, passes, fails", [("float64", 1e-13, 1e-11), ("float32", 1e-6, 1e-4)]
)
def test_vs_torch_is_as_strict_as_the_dtype_allows(dtype, passes, fails, torch):
    theirs = lambda x: x * 3
    vs_torch(lambda x: x * (3 + 3 * passes), theirs, [A], dtype=dtype)
    with pytest.raises(AssertionError):
        vs_torch(lambda x: x * (3 + 3 * fails), theirs, [A], dtype=dtype)
    vs_torch(lambda x: x * (3 + 3 * fails), theirs, [A], dtype=dtype, rtol=1e-3)
    vs_torch(lambda x: x * (3 + 3 * fails), theirs, [A], dtype=dtype, atol=1e-2)


def test_vs_torch_in_half_precision(torch):
    vs_torch(lambda x: x * 3, lambda x: x * 3, [A], dtype="float16")
    with pytest.raises(AssertionError):
        vs_torch(lambda x: x * 3.1, lambda x: x * 3, [A], dtype="float16")


def test_vs_torch_takes_equal_infinities_and_nans_for_equal(torch):
    x = np.array([np.inf, -np.inf, np.nan, 1.0])
    assert vs_torch(lambda x: x * 2, lambda x: x * 2, [x])["output"] == 0.0


def test_vs_torch_passes_integers_and_masks_through(torch):
    f = lambda library: lambda x, i, m: library.where(m, x, 0.0)[i]
    found = vs_torch(f(ops), f(torch), [A, np.array([0, 2, 0]), B > 0])
    assert [*found] == ["output", "gradient of input 0"]


def test_vs_torch_compares_further_tensors_in_pairs(torch):
    w, t = Tensor(ROW, requires_grad=True), torch.tensor(ROW, requires_grad=True)
    found = vs_torch(lambda x: x * w, lambda x: x * t, [A], params=[(w, t)])
    assert "gradient of 0" in found and w.grad is None and t.grad is None
    with pytest.raises(AssertionError, match="gradient of 0 differs"):
        vs_torch(lambda x: x * w.detach() + w - w.data, lambda x: x * t, [A], params=[(w, t)])


def test_without_torch_vs_torch_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        vs_torch(ops.exp, None, [A])


# ---- vs_torch, modules ----


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_in, n_out", [(4, 2), (4, 4), (4, 1)])
def test_vs_torch_compares_modules_and_knows_the_transposed_weight(n_in, n_out, dtype, torch):
    layer, linear = Affine(n_in, n_out), torch.nn.Linear(n_in, n_out)
    theirs = torch.nn.Sequential(linear, torch.nn.Tanh())  # other names: paired by order
    before, weight = state(layer), linear.weight.detach().clone()
    found = vs_torch(layer, theirs, [A], dtype=dtype)
    assert {"gradient of weight", "gradient of bias"} <= found.keys()
    assert same(state(layer), before)
    assert torch.equal(linear.weight, weight) and linear.weight.grad is None
    assert linear.weight.dtype == torch.float32


@pytest.mark.parametrize("n_in, n_out", [(4, 2), (4, 4)])
def test_vs_torch_pairs_parameters_by_name_where_it_can(n_in, n_out, torch):
    class Linear(torch.nn.Linear):
        def forward(self, x):
            return torch.tanh(super().forward(x))

    theirs = Linear(n_in, n_out)
    bias, weight = theirs.bias, theirs.weight
    del theirs.bias, theirs.weight
    theirs.bias, theirs.weight = bias, weight  # in another order than ours
    vs_torch(Affine(n_in, n_out), theirs, [A])


def test_vs_torch_takes_modules_as_they_are_if_asked(torch):
    layer, linear = Affine(4, 2), torch.nn.Linear(4, 2)
    theirs = torch.nn.Sequential(linear, torch.nn.Tanh())
    with pytest.raises(AssertionError, match="output"):
        vs_torch(layer, theirs, [A], copy=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(layer.weight.data.numpy().T))
        linear.bias.copy_(torch.tensor(layer.bias.data.numpy()[0]))
    vs_torch(layer, theirs, [A], copy=False)


def test_vs_torch_catches_a_wrong_gradient_of_a_parameter(torch):
    class Wrong(Affine):
        def __call__(self, x):
            return (ops.linear(x, self.weight, self.bias.detach()) + 0 * self.bias).tanh()

    with pytest.raises(AssertionError, match="gradient of bias differs"):
        vs_torch(Wrong(4, 2), torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh()), [A])


def test_vs_torch_refuses_modules_with_other_parameters(torch):
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 2, bias=False), torch.nn.Tanh())
    with pytest.raises(AssertionError, match=r"\['weight', 'bias'\] here, \['0.weight'\] there"):
        vs_torch(Affine(4, 2), theirs, [A])


def test_vs_torch_leaves_frozen_parameters_out(torch):
    layer, linear = Affine(4, 2), torch.nn.Linear(4, 2)
    layer.bias.requires_grad = False
    found = vs_torch(layer, torch.nn.Sequential(linear, torch.nn.Tanh()), [A])
    assert "gradient of weight" in found and "gradient of bias" not in found


class Norm:
    "Batch normalisation as a minima module would be, with the statistics of one step."

    def __init__(self, momentum, dtype="float64"):
        self.momentum = momentum
        self.weight = Tensor(np.ones((1, 4)), dtype=dtype, requires_grad=True)
        self.bias = Tensor(np.zeros((1, 4)), dtype=dtype, requires_grad=True)
        self.running_mean = Tensor(np.zeros(4), dtype=dtype)
        self.running_var = Tensor(np.ones(4), dtype=dtype)
        self.steps = Tensor(np.array(0))

    def named_parameters(self):
        return [("weight", self.weight), ("bias", self.bias)]

    def named_buffers(self):
        running = [("running_mean", self.running_mean), ("running_var", self.running_var)]
        return [*running, ("num_batches_tracked", self.steps)]

    def __call__(self, x):
        m = self.momentum
        self.steps.array += 1
        for running, new in ((self.running_mean, x.mean(0)), (self.running_var, x.var(0))):
            assert running.dtype == x.dtype
            running.data = running * (1 - m) + new * m
        return ops.normalize(x, self.weight, self.bias, axis=(0,), eps=1e-5)


def test_vs_torch_compares_buffers_after_the_step_and_leaves_them_as_they_were(torch):
    norm = Norm(0.1)
    found = vs_torch(norm, torch.nn.BatchNorm1d(4), [A])
    assert found["buffer running_mean"] < 1e-14 and found["buffer running_var"] < 1e-14
    assert norm.running_mean.tolist() == [0.0] * 4 and norm.steps.item() == 0
    with pytest.raises(AssertionError, match="buffer running_mean differs"):
        vs_torch(Norm(0.2), torch.nn.BatchNorm1d(4), [A])
