"Checkpoints: the same numbers and gradients as without, in less memory."

import tracemalloc

import numpy as np
import pytest

import minima as mi
from minima import nn
from minima import operators as ops
from minima.autograd import Tensor, checkpoint, grad
from minima.random import Generator, default_generator
from minima.testing import gradcheck

RNG = np.random.default_rng(0)


def leaf(*shape):
    return Tensor(RNG.normal(size=shape), requires_grad=True)


def gradients(function, *leaves, upstream):
    "What `function` makes of `leaves`, and the gradients, in a run of their own."
    for t in leaves:
        t.grad = None
    mi.manual_seed(0)
    y = function(*leaves)
    mi.manual_seed(1)  # the walk back must not look at it
    y.backward(upstream)
    return y.numpy() if not y.requires_grad else y.detach().numpy(), [t.grad for t in leaves]


def same(ours, others):
    (y, gs), (z, hs) = ours, others
    assert (y == z).all()
    for g, h in zip(gs, hs, strict=True):
        assert g.tolist() == h.tolist()


def test_a_model_with_dropout_gets_the_same_gradients_bit_for_bit():
    model = nn.Sequential(nn.Linear(5, 16), nn.GELU(), nn.Dropout(0.4), nn.Linear(16, 3))
    model.to("float64")
    x, g = leaf(7, 5), RNG.normal(size=(7, 3))
    leaves = [x, *model.parameters()]
    plain = gradients(lambda x, *_: model(x), *leaves, upstream=g)
    same(gradients(lambda x, *_: checkpoint(model)(x), *leaves, upstream=g), plain)
    parts = lambda x, *_: checkpoint(model[2:])(checkpoint(model[:2])(x))
    same(gradients(parts, *leaves, upstream=g), plain)
    nested = lambda x, *_: checkpoint(lambda x: model[3](checkpoint(model[:3])(x)))(x)
    same(gradients(nested, *leaves, upstream=g), plain)


def test_a_generator_of_ones_own_repeats_and_moves_on_once():
    own = Generator(3)
    noisy = lambda x: nn.functional.dropout(x, 0.5, generator=own)
    x = leaf(20)
    before = default_generator.get_state()
    y = checkpoint(noisy)(x)
    assert own.get_state()["offset"] == 1
    y.sum().backward()
    np.testing.assert_allclose((y / x).detach().numpy(), x.grad.numpy())
    assert own.get_state()["offset"] == 1 and default_generator.get_state() == before


def test_several_outputs_in_any_nest_share_one_second_run():
    runs = []

    def function(x, *, w):
        runs.append(1)
        return {"a": x * w, "b": (ops.exp(x), "text", [x.sum(), x])}

    def total(out):
        return (out["a"] * 3).sum() + (out["b"][0] * out["b"][2][0]).sum() + out["b"][2][1].sum()

    x, w = leaf(4), leaf(4)
    plain = grad(total(function(x, w=w)), [x, w])
    runs.clear()
    out = checkpoint(function)(x, w=w)
    assert out["b"][1] == "text" and out["b"][2][1] is x and len(runs) == 1
    for a, b in zip(grad(total(out), [x, w]), plain, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-14)
    assert len(runs) == 2


def test_sources_that_nobody_handed_over_get_their_gradients():
    w, x = leaf(3), leaf(3)
    between = x * 2  # neither a leaf nor an argument
    checkpoint(lambda: w * between)().sum().backward()
    assert w.grad.tolist() == between.tolist() and x.grad.tolist() == (2 * w).tolist()


def test_a_leaf_made_inside_disturbs_nobody():
    x = leaf(2)
    checkpoint(lambda x: x * Tensor([2.0, 3.0], requires_grad=True))(x).sum().backward()
    assert x.grad.tolist() == [2.0, 3.0]


def test_derivatives_of_any_order_go_through():
    weights = leaf(3, 3)
    f = checkpoint(lambda x: ops.tanh(x @ weights) * x)
    assert gradcheck(f, [RNG.normal(size=(2, 3))], params=[weights], order=2)


def test_a_graph_that_is_retained_can_be_walked_twice():
    x = leaf(3)
    y = checkpoint(ops.exp)(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * np.exp(x.detach().numpy()))


def test_it_is_the_plain_function_where_nothing_is_recorded():
    x, runs = leaf(2), []
    f = checkpoint(lambda x: runs.append(1) or x * 2)
    with mi.no_grad():
        assert not f(x).requires_grad
    assert not f(x.detach()).requires_grad and len(runs) == 2


def test_hooks_see_each_gradient_once_and_complete():
    w, x, seen = leaf(3), leaf(3), []
    w.register_hook(lambda g: seen.append(g.tolist()))
    between = x * 2
    between.register_hook(lambda g: g * 10)
    (checkpoint(lambda: w * between)() + w).sum().backward()
    assert seen == [(between + 1).tolist()]
    np.testing.assert_allclose(x.grad.numpy(), 20 * w.detach().numpy())


def test_an_argument_that_was_written_into_is_noticed():
    x, a = leaf(2), Tensor([1.0, 2.0])
    for victim in (a, x.detach()):
        y = checkpoint(lambda x, a: x * a)(x, a).sum()
        victim[...] = 0.5
        with pytest.raises(RuntimeError, match="checkpoint keeps `needed`.*writing by index"):
            y.backward()


def test_another_result_the_second_time_is_an_error():
    sizes = iter([2, 3])
    y = checkpoint(lambda x: x[: next(sizes)] * 1)(leaf(4)).sum()
    with pytest.raises(RuntimeError, match=r"\[\(3,\)\] instead of \[\(2,\)\]"):
        y.backward()


def test_more_draws_the_second_time_are_an_error():
    counts = iter([1, 2])
    noisy = lambda x: x * sum(default_generator.uniform(1)[0] for _ in range(next(counts)))
    y = checkpoint(noisy)(leaf(4)).sum()
    with pytest.raises(RuntimeError, match="only 1 draws"):
        y.backward()


def test_memory_is_saved():
    def peak(wrap):
        x = Tensor(np.ones((64, 1024)), requires_grad=True)
        deep = wrap(lambda x: [x := ops.tanh(x) for _ in range(6)][-1])
        tracemalloc.start()
        y = x
        for _ in range(6):
            y = deep(y)
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        y.sum().backward()
        return size / x.array.nbytes, x.grad.tolist()

    (plain, expected), (thrifty, found) = peak(lambda f: f), peak(checkpoint)
    assert found == expected
    assert 36 <= plain < 37 and 6 <= thrifty < 7  # results of tanh, in multiples of x


def test_modules_can_be_checkpointed_and_keep_their_name():
    assert checkpoint(nn.Linear(2, 2))(leaf(1, 2).to("float32")).shape == (1, 2)
    assert checkpoint(gradients).__name__ == "gradients"
