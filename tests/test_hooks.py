"Looking on at the walk back, and arrays that were written into before it; both beside PyTorch."

import sys
import threading

import numpy as np
import pytest

import minima as mi
from minima import operators as ops
from minima import optim
from minima.autograd import Tensor, grad, wrote
from minima.autograd.tape import _MOST_NOTES, _next_order, _written, _written_since

RNG = np.random.default_rng(0)


def leaf(*shape):
    return Tensor(RNG.normal(size=shape), requires_grad=True)


def both(torch, *shape):
    "The same random leaf, ours and theirs."
    x = leaf(*shape)
    return x, torch.tensor(x.detach().numpy().copy(), requires_grad=True)


def same(ours, theirs):
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol=1e-12)


# ---- hooks ----


def diamond(x, watch):
    "A value that is used twice, watched; and what is made of it."
    y = x * x
    watch(y)
    return (y * 2 + y * y).sum()


def test_a_hook_sees_the_complete_gradient_once(torch):
    x, t = both(torch, 3)
    ours, theirs = [], []
    diamond(x, lambda y: y.register_hook(ours.append)).backward()
    diamond(t, lambda y: y.register_hook(theirs.append)).backward()
    assert len(ours) == len(theirs) == 1
    same(ours[0], theirs[0])


@pytest.mark.parametrize("where", ["leaf", "inside", "output"])
def test_what_hooks_return_goes_on_in_their_order(torch, where):
    x, t = both(torch, 3)

    def run(x):
        y = x * x
        z = (y * 3).sum()
        watched = {"leaf": x, "inside": y, "output": z}[where]
        watched.register_hook(lambda g: g * 2)
        watched.register_hook(lambda g: None)
        watched.register_hook(lambda g: g + 1)
        z.backward()
        return x.grad

    same(run(x), run(t))


def test_gradients_that_are_asked_for_have_passed_the_hooks(torch):
    x, t = both(torch, 3)

    def run(x, gradient_of, which):
        y = x * x
        y.register_hook(lambda g: g * 5)
        with_hook = [x, y][which]
        with_hook.register_hook(lambda g: g * 2)
        return gradient_of((y * 3).sum(), [with_hook])[0]

    for which in (0, 1):  # one by one: asked for both, PyTorch hands out y's as it was before
        same(run(x, grad, which), run(t, torch.autograd.grad, which))


def test_hooks_can_be_differentiated_through(torch):
    x, t = both(torch, 3)

    def run(x, gradient_of):
        y = x * x
        y.register_hook(lambda g: g * g)
        (g,) = gradient_of((y * y).sum(), [x], create_graph=True)
        return gradient_of(g.sum(), [x])[0]

    same(run(x, grad), run(t, torch.autograd.grad))


def test_a_removed_hook_is_silent():
    x, seen = leaf(2), []
    handle = x.register_hook(seen.append)
    with x.register_hook(seen.append):
        (x * 1).sum().backward()
    assert len(seen) == 2
    (x * 1).sum().backward()
    assert len(seen) == 3
    handle.remove()
    handle.remove()
    (x * 1).sum().backward()
    assert len(seen) == 3


def test_what_a_hook_was_handed_stays_as_it_was():
    x, seen = leaf(2), []
    x.register_hook(seen.append)
    for _ in range(2):
        (x * 1.0).backward(np.ones(2))
    assert [g.tolist() for g in seen] == [[1, 1], [1, 1]] and x.grad.tolist() == [2, 2]


def test_retained_gradients_are_those_of_torch(torch):
    x, t = both(torch, 3)

    def run(x):
        y = x * x
        y.retain_grad()
        y.register_hook(lambda g: g * 2)  # after; what is kept has passed it all the same
        z = (y * y).sum()
        z.backward(retain_graph=True)
        z.backward()
        return y

    ours, theirs = run(x), run(t)
    same(ours.grad, theirs.grad)
    same(x.grad, t.grad)
    assert ours.retains_grad and theirs.retains_grad


def test_a_leaf_retains_anyway_and_only_once():
    x = leaf(2)
    x.retain_grad()
    assert not x.retains_grad
    (x * 3.0).backward(np.ones(2))
    assert x.grad.tolist() == [3.0, 3.0]


def test_a_retained_gradient_owns_its_memory():
    x, g = leaf(2), np.ones(2)
    y = x + 0
    y.retain_grad()
    y.backward(g)
    assert not np.shares_memory(y.grad.array, x.grad.array)
    assert not np.shares_memory(y.grad.array, g)


@pytest.mark.parametrize(
    "attempt, text",
    [
        (lambda x: Tensor([1.0]).register_hook(print), "doesn't require gradient"),
        (lambda x: Tensor([1.0]).retain_grad(), "doesn't require gradient"),
        (lambda x: watched(x, lambda g: g[:1]), "must be the same"),
        (lambda x: watched(x, lambda g: g.to("float32")), "must be the same"),
    ],
)
def test_mistakes_with_hooks_are_explained(attempt, text):
    with pytest.raises(RuntimeError, match=text):
        attempt(leaf(2))


def watched(x, hook):
    x.register_hook(hook)
    (x * 1).sum().backward()


# ---- written into, too late ----


def write(t):
    t.detach()[...] = 7.0


WRITERS = {
    "by index": write,
    "into a view": lambda t: t.detach()[:1].__setitem__(0, 7.0),
    "into a reshaped view": lambda t: t.detach().reshape(1, -1).T.__setitem__(0, 7.0),
    "an optimizer": lambda t: stepped(t),
    "clipping": lambda t: clipped(t),
    "a walk back, into grad": lambda t: accumulated(t),
}


def stepped(t):
    t.grad = mi.Tensor(np.ones(t.shape))
    optim.SGD([t], lr=0.1).step()


def clipped(t):
    holder = leaf(*t.shape)
    holder.grad = t.detach()
    optim.clip_grad_value_([holder], 0.01)


def accumulated(t):
    holder = leaf(*t.shape)
    holder.grad = t.detach()
    (holder * 1).sum().backward()


@pytest.mark.parametrize("writer", WRITERS)
def test_a_needed_array_that_was_written_into_is_named(writer):
    x, w = leaf(3), leaf(3)
    y = x * w
    WRITERS[writer](w)
    with pytest.raises(RuntimeError, match=r"inplace operation: multiply keeps `b`, shape \(3,\)"):
        y.backward(np.ones(3))


@pytest.mark.parametrize(
    "run",
    [
        lambda x, w: x + w,  # needs neither
        lambda x, w: x * w.detach(),  # needs w only
        lambda x, w: (x * 2).sum() * 3,  # numbers only
        lambda x, w: ops.concat([x, w]),
        lambda x, w: x.reshape(3, 1),
        lambda x, w: x[1:],
    ],
)
def test_writing_into_what_is_not_needed_is_fine(run, torch):
    x, w = leaf(3), leaf(3)
    y = run(x, w)
    write(x)
    y.backward(np.ones(y.shape))
    assert np.isfinite(x.grad.numpy()).all()


def test_writing_into_a_needed_output_is_noticed(torch):
    x, t = both(torch, 3)
    y, z = ops.exp(x), torch.exp(t)
    y.detach()[0] = 0.0
    z.detach()[0] = 0.0
    for out in (y.sum(), z.sum()):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


def test_writing_before_or_into_a_copy_or_afterwards_is_fine():
    x, w = leaf(3), leaf(3)
    write(w)
    y = x * w
    write(mi.tensor(w))
    y.backward(np.ones(3))
    write(w)
    assert x.grad.tolist() == [7.0] * 3


def test_a_second_walk_notices_a_write_after_the_first():
    x, w = leaf(3), leaf(3)
    y = (x * w).sum()
    y.backward(retain_graph=True)
    write(w)
    with pytest.raises(RuntimeError, match="inplace"):
        y.backward()


def test_reading_a_rule_again_needs_all_its_arguments():
    x = leaf(3)
    y = ops.exp(x).sum()  # the pullback keeps the result only
    write(x)
    with pytest.raises(RuntimeError, match="inplace"):
        grad(y, x, create_graph=True, retain_graph=True)
    grad(y, x)


def test_an_index_that_was_written_into_is_noticed():
    x, i = leaf(3), Tensor(np.array([0, 2]))
    y = ops.take(x, i)
    i[0] = 1
    with pytest.raises(RuntimeError, match="inplace"):
        y.backward(np.ones(2))


def test_training_writes_between_walks_without_complaint():
    w = leaf(3, 2)
    optimizer = optim.SGD([w], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = ((Tensor(np.eye(3)) @ w - 1.0) ** 2).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_notes_of_writes_do_not_pile_up():
    for i in range(_MOST_NOTES + 100):
        wrote(np.empty(1), f"number {i}")
    kept = [np.empty(1) for _ in range(_MOST_NOTES + 100)]
    for array in kept:
        wrote(array, "a test")
    assert len(_written) == _MOST_NOTES


def test_notes_of_writes_can_be_read_while_another_thread_makes_some():
    arrays, leaving = [np.empty(1) for _ in range(500)], threading.Event()

    def write_on():
        while not leaving.is_set():
            for array in arrays:
                wrote(array, "another thread")

    interval, thread = sys.getswitchinterval(), threading.Thread(target=write_on)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(20_000):
            notes = _written_since(_next_order() - 2_000)
    finally:
        leaving.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert notes and {by for _, by in notes.values()} == {"another thread"}
