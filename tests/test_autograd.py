"The engine: graphs deep, wide and tangled; memory; who gets a gradient, and whose it is."

import gc
import threading
import tracemalloc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from minima import operators as ops
from minima.autograd import Tensor, enable_grad, grad, is_grad_enabled, no_grad, op, tensor, wrap


def leaf(data, dtype="float64"):
    return Tensor(np.array(data, dtype=dtype), requires_grad=True)


@contextmanager
def no_collector():
    "Without Python's cycle collector, so that only reference counts free anything."
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def live_tensors():
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


# ---- the shapes of graphs ----


def chain(x, n):
    y = x
    for _ in range(n // 2):
        y = ops.negate(y * 1.0)
    return y


def test_a_chain_of_100_000_operations_goes_forward_and_backward():
    x = leaf([1.0, 2.0])
    chain(x, 100_000).backward([1.0, 10.0])
    assert x.grad.tolist() == [1.0, 10.0]


def test_a_chain_of_100_000_operations_is_freed_without_a_backward():
    with no_collector():
        before = live_tensors()
        x = leaf([1.0])
        y = chain(x, 100_000)
        ghost = weakref.ref(y)
        del y
        assert ghost() is None and live_tensors() == before + 1


def test_a_chain_of_100_000_operations_is_freed_by_its_backward():
    with no_collector():
        x = leaf([1.0])
        before = live_tensors()
        y = chain(x, 100_000)
        y.backward([1.0])
        assert live_tensors() == before + 2  # y and x.grad


def test_a_chain_is_walked_with_create_graph_too():
    x = leaf([1.5])
    (g,) = grad(chain(x, 4_000) * x, x, np.ones(1), create_graph=True)
    assert g.tolist() == [3.0] and grad(g, x, np.ones(1))[0].tolist() == [2.0]


def test_a_fan_of_10_000_adds_up():
    x = leaf([1.0, 2.0])
    ops.stack([x * float(i) for i in range(10_000)]).sum().backward()
    assert x.grad.tolist() == [sum(range(10_000))] * 2


def test_a_sum_of_10_000_terms_of_one_tensor():
    x, y = leaf(1.0), 0.0
    for _ in range(10_000):
        y = y + x
    y.backward()
    assert x.grad.item() == 10_000


def test_a_diamond():
    x = leaf(3.0)
    y = x * x  # two roads of one step
    z = y * x + y  # and three roads through y and past it
    z.backward()
    assert x.grad.item() == 3 * 9 + 2 * 3


def test_a_ladder_of_diamonds_is_walked_once_for_each_tensor_not_for_each_road():
    y = x = leaf(1.0)
    for _ in range(200):
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**200


def test_a_tensor_used_before_and_after_others_waits_for_all_its_users():
    x = leaf(2.0)
    a = x * 3
    b = a * a
    c = b + a  # a is used by b, which is older than c, and by c
    d = c * b
    d.backward()
    assert x.grad.item() == pytest.approx(4 * 81 * 8 + 3 * 27 * 4)  # d = 81 x^4 + 27 x^3


@pytest.mark.parametrize("seed", range(20))
def test_tangled_graphs_have_the_gradients_of_torch(seed, torch):
    rng = np.random.default_rng(seed)
    starts = [rng.normal(size=s) for s in [(3, 3), (3, 1), (3,), ()]]
    ours, theirs = [leaf(a) for a in starts], [torch.tensor(a, requires_grad=True) for a in starts]
    mine, yours = list(ours), list(theirs)
    for _ in range(30):
        i, j = rng.integers(0, len(mine), 2)
        kind = rng.integers(0, 4)
        for pool, library in ((mine, ops), (yours, torch)):
            a, b = pool[i], pool[j]
            steps = [lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a - b]
            made = library.tanh(steps[kind](a, b)) if kind < 3 else library.sigmoid(a)
            pool.append(made)
    y, z = sum(t.sum() for t in mine[-5:]), sum(t.sum() for t in yours[-5:])
    y.backward()
    z.backward()
    for a, t in zip(ours, theirs):
        assert (a.grad is None) == (t.grad is None)
        if a.grad is not None:
            np.testing.assert_allclose(a.grad.numpy(), t.grad.numpy(), rtol=1e-10, atol=1e-12)


# ---- memory ----


def test_a_dead_graph_is_freed_at_once_by_reference_counts():
    with no_collector():
        x = leaf(np.ones((4, 4)))
        for make in (
            lambda: (x @ x).sum(),
            lambda: x[1:, [0, 2]] * 2,
            lambda: ops.concat([x, x]).softmax().max(axis=1),
            lambda: ops.normalize(ops.linear(x, x, x[0]), axis=(1,), eps=1e-5).var(),
            lambda: grad((x * x).sum(), x, create_graph=True)[0],
        ):
            before = live_tensors()
            y = make()
            ghost = weakref.ref(y)
            assert live_tensors() > before
            del y
            assert ghost() is None and live_tensors() == before


def test_backward_frees_the_graph_as_it_goes_even_while_the_output_is_held():
    with no_collector():
        x = leaf(np.ones(3))
        middle = x * 2.0
        ghost = weakref.ref(middle)
        y = middle.exp().sum()
        del middle
        assert ghost() is not None
        y.backward()
        assert ghost() is None


def test_an_array_that_only_a_pullback_needs_is_freed_with_it():
    x = leaf(np.ones(1000))
    y = x.exp()
    array = weakref.ref(y.array)
    z = y.sum()
    del y
    assert array() is not None
    z.backward()
    assert array() is None


def train(x, w, velocity):
    "One step of training as people write it, and a look at the model without gradients."
    loss = ((x @ w).tanh() ** 2).mean()
    loss.backward()
    with no_grad():
        velocity.data = velocity * 0.9 + w.grad
        w.data = w - 0.01 * velocity
        w.grad = None
        (x @ w).tanh()


def test_memory_is_flat_over_1000_steps():
    rng = np.random.default_rng(0)
    x, w = Tensor(rng.normal(size=(8, 4))), leaf(rng.normal(size=(4, 3)))
    velocity = Tensor(np.zeros((4, 3)))
    with no_collector():
        train(x, w, velocity)
        before = live_tensors()
        tracemalloc.start()
        try:
            for _ in range(20):
                train(x, w, velocity)
            gc.collect()
            first = tracemalloc.get_traced_memory()[0]
            for _ in range(1000):
                train(x, w, velocity)
            tensors, cycles = live_tensors(), gc.collect()  # which empties most pools, too
            grown = tracemalloc.get_traced_memory()[0] - first
        finally:
            tracemalloc.stop()
        assert tensors == before and cycles == 0
        assert grown < 50_000  # 50 bytes a step: less than the smallest array or Tensor
        assert w.is_leaf and velocity.is_leaf and not velocity.requires_grad


# ---- walking twice ----


def test_a_second_backward_is_refused_with_a_way_out():
    y = (leaf(2.0) * 3).exp()
    y.backward()
    with pytest.raises(RuntimeError, match="second time.*retain_graph=True"):
        y.backward()


def test_a_second_backward_through_a_shared_part_is_refused():
    shared = leaf(2.0) * 3
    first, second = shared.exp(), shared.tanh()
    first.backward()
    with pytest.raises(RuntimeError, match="second time"):
        second.backward()


def test_retain_graph_allows_a_second_backward():
    x = leaf(2.0)
    y = x * x * x
    for walks in (1, 2, 3):
        y.backward(retain_graph=walks < 3)
        assert x.grad.item() == 12.0 * walks
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


def test_a_graph_remains_after_grad_with_retain_graph():
    x = leaf(2.0)
    y = x * x
    assert grad(y, x, retain_graph=True)[0].item() == grad(y, x)[0].item() == 4.0
    with pytest.raises(RuntimeError, match="second time"):
        grad(y, x)


# ---- who gets a gradient ----


def test_leaves_accumulate_until_somebody_clears_them():
    x = leaf([1.0, 2.0])
    for walks in (1, 2):
        (x * 3).sum().backward()
        assert x.grad.tolist() == [3.0 * walks] * 2
    x.grad = None
    (x * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]


def test_only_leaves_that_asked_keep_a_gradient():
    x, fixed = leaf(2.0), Tensor(3.0)
    y = x * fixed
    z = y * y
    assert x.grad is None
    z.backward()
    assert x.grad.item() == 36.0 and y.grad is None and z.grad is None and fixed.grad is None


def test_a_leaf_is_its_own_gradient():
    x = leaf(2.0)
    x.backward()
    assert x.grad.item() == 1.0


def test_tensors_ask_for_no_gradient_by_default():
    assert not any(t.requires_grad for t in (Tensor([1.0]), tensor([1.0]), wrap(np.ones(1))))
    assert not (Tensor([1.0]) * Tensor([2.0])).requires_grad


def test_only_floats_can_ask_for_a_gradient():
    for data in ([1, 2], [True], np.array([1], dtype="uint8")):
        with pytest.raises(RuntimeError, match="floating point"):
            Tensor(data, requires_grad=True)
        with pytest.raises(RuntimeError, match="floating point"):
            Tensor(data).requires_grad_()


def test_requires_grad_can_be_switched_at_a_leaf_only():
    x = Tensor([1.0]).requires_grad_()
    y = x * 2
    assert y.requires_grad and not y.is_leaf and x.is_leaf
    with pytest.raises(RuntimeError, match="detach"):
        y.requires_grad_(False)
    x.requires_grad_(False)
    assert not (x * 2).requires_grad


def test_a_detached_tensor_shares_numbers_and_no_graph():
    x = leaf([1.0, 2.0])
    y = x * 2
    d = y.detach()
    assert d.array is y.array and d.is_leaf and not d.requires_grad
    (y * d).sum().backward()
    assert x.grad.tolist() == [4.0, 8.0]  # d counts as a constant
    assert not (x.data * 2).requires_grad


def test_a_pullback_that_nobody_needs_is_never_called():
    calls = []

    @op
    def product(xp, a, b):
        def by(name, other):
            return lambda g: calls.append(name) or g * other

        return a * b, by("a", b), by("b", a)

    x, y = leaf([2.0]), Tensor([3.0])
    product(x, y).backward([1.0])
    product(y, x).backward([1.0])
    assert calls == ["a", "b"]
    product(product(y, y), x).backward([1.0])
    with no_grad():
        product(x, x)
    assert calls == ["a", "b", "b"]


def test_of_many_arguments_only_those_that_asked_get_a_gradient():
    calls = []

    @op
    def total(xp, *arrays):
        def by(i):
            return lambda g: calls.append(i) or g

        return sum(arrays), *map(by, range(len(arrays)))

    x, fixed = leaf([2.0]), Tensor([3.0])
    total(fixed, x, fixed, x).backward([1.0])
    assert calls == [1, 3] and x.grad.tolist() == [2.0] and fixed.grad is None
    assert not total(fixed, fixed, 1.0).requires_grad


def test_branches_that_do_not_lead_to_the_output_are_left_alone():
    x, w = leaf([2.0]), leaf([3.0])
    y = x * 2
    (y * w)  # computed, and not used
    y.backward([1.0])
    assert w.grad is None and x.grad.tolist() == [2.0]


# ---- whose memory a gradient is ----

SHARING = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "a sum of reshaped": lambda a, b: a.reshape(3, 2).reshape(2, 3) + b,
    "transposed": lambda a, b: a.T.T + b.T.T,
    "concat": lambda a, b: ops.concat([a, b])[:2] + ops.concat([a, b])[2:],
    "stack": lambda a, b: ops.stack([a, b])[0] + ops.stack([a, b])[1],
    "expanded": lambda a, b: ops.squeeze(ops.expand_dims(a, 0), 0) + b,
    "broadcast": lambda a, b: ops.broadcast_to(a, (2, 3)) + ops.broadcast_to(b, (2, 3)),
    "indexed": lambda a, b: a[:] + b[...],
    "astype": lambda a, b: a.astype("float64") + b.astype("float64"),
    "itself": lambda a, b: a + b + a,
    "where": lambda a, b: ops.where(True, a, 0.0) + b,
}


@pytest.mark.parametrize("f", SHARING.values(), ids=SHARING)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_gradient_shares_memory_with_nothing(f, create_graph):
    a, b = leaf(np.ones((2, 3))), leaf(np.ones((2, 3)))
    for g in (np.full((2, 3), 5.0), Tensor(np.full((2, 3), 5.0))):
        a.grad = b.grad = None
        y = f(a, b)
        y.backward(g, create_graph=create_graph)
        upstream = g.array if isinstance(g, Tensor) else g
        arrays = [a.grad.array, b.grad.array, upstream, a.array, b.array, y.array]
        for i in (0, 1):
            assert arrays[i].flags.writeable and arrays[i].shape == (2, 3)
            others = arrays[:i] + arrays[i + 1 :]
            assert not any(np.shares_memory(arrays[i], other) for other in others)
            arrays[i][...] = -7.0
        assert (upstream == 5.0).all()


def test_changing_one_gradient_in_place_changes_no_other():
    a, b, g = leaf([1.0]), leaf([2.0]), np.array([3.0])
    ops.add(a, b).backward(g)
    a.grad.array[0] = 100.0
    assert b.grad.tolist() == [3.0] and g.tolist() == [3.0]
    ops.add(a, b).backward(g)
    assert a.grad.tolist() == [103.0] and b.grad.tolist() == [6.0] and g.tolist() == [3.0]


@pytest.mark.parametrize(
    "f", [lambda x: x.sum(), lambda x: x.mean(), lambda x: x.max(), lambda x: x[0, 0] + x.sum()]
)
def test_the_gradient_of_a_reduction_is_no_read_only_view(f):
    x = leaf(np.ones((2, 3)))
    f(x).backward()
    x.grad.array *= 2
    f(x).backward()
    assert x.grad.shape == (2, 3)


def test_what_grad_returns_shares_memory_with_nothing():
    a, b, g = leaf([1.0]), leaf([2.0]), np.array([3.0])
    by_a, by_b = grad(a + b, [a, b], g)
    by_a.array[0] = 9.0
    assert by_b.tolist() == [3.0] and g.tolist() == [3.0]


def test_a_gradient_with_a_graph_is_not_changed_by_a_later_backward():
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    first = x.grad
    (x * 1.0).backward()
    assert x.grad.item() == 13.0 and first.item() == 12.0
    assert grad(first, x)[0].item() == 12.0


# ---- dtypes of gradients ----


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_gradient_has_the_dtype_of_its_tensor(dtype):
    x = leaf([1.0, 2.0], dtype)
    loss = ((x * 2.0 + 1).exp().log() ** 2 / 3).mean()
    loss.backward()
    assert loss.dtype == x.grad.dtype == dtype


def test_gradients_through_mixed_dtypes_have_each_tensors_own():
    a, b, c = leaf([1.5], "float32"), leaf([2.5]), leaf([0.5], "float16")
    y = a * b + c
    y.backward(np.ones(1, dtype="float32"))
    assert y.dtype == "float64"
    assert [t.grad.dtype for t in (a, b, c)] == ["float32", "float64", "float16"]
    assert [t.grad.item() for t in (a, b, c)] == [2.5, 1.5, 1.0]


def test_second_derivatives_go_through_mixed_dtypes():
    a, b = leaf([1.5], "float32"), leaf([2.5])
    (first,) = grad(a * a * b, a, np.ones(1), create_graph=True)
    assert first.dtype == "float32" and first.requires_grad
    second, mixed = grad(first, [a, b], np.ones(1))
    assert second.dtype == "float32" and second.item() == 5.0 and mixed.item() == 3.0


def test_a_cotangent_from_python_is_as_exact_as_the_output():
    x = leaf([1.0, 1.0])
    (x * 1).backward([0.1, 0.2])
    assert x.grad.tolist() == [0.1, 0.2]
    x.grad = None
    x.sum().backward(0.1)
    assert x.grad.tolist() == [0.1, 0.1]


def test_astype_brings_the_gradient_back_in_the_dtype_it_came_from():
    x = leaf([1.0], "float32")
    y = x.astype("float64") * 2
    y.backward([1.0])
    assert y.dtype == "float64" and x.grad.dtype == "float32"
    assert not x.astype("int64").requires_grad


# ---- recording or not ----


def test_no_grad_as_a_context():
    x = leaf([1.0])
    with no_grad():
        assert not is_grad_enabled()
        y = x * 2
        with enable_grad():
            assert is_grad_enabled() and (x * 2).requires_grad
        assert not is_grad_enabled()
        z = ops.concat([x.exp(), x], axis=0)
    assert is_grad_enabled() and not y.requires_grad and y.is_leaf and y._edges == ()
    assert not z.requires_grad and z.is_leaf


@no_grad
def quiet(x, *, factor=2):
    "Times a factor."
    return x * factor


@no_grad()
def quiet_too(x, *, factor=2):
    "Times a factor."
    return x * factor


@enable_grad()
def loud(x):
    return x * 2


@pytest.mark.parametrize("f", [quiet, quiet_too], ids=["bare", "called"])
def test_no_grad_as_a_decorator(f):
    x = leaf([1.0])
    assert f(x, factor=3).tolist() == [3.0] and not f(x).requires_grad and is_grad_enabled()
    assert f.__doc__ == "Times a factor." and f.__name__ in ("quiet", "quiet_too")
    with no_grad():
        assert loud(x).requires_grad and not is_grad_enabled()


def test_no_grad_ends_with_an_error():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert is_grad_enabled()


def test_a_decorated_function_may_call_itself():
    @no_grad()
    def down(x, n):
        assert not is_grad_enabled()
        return x if n == 0 else down(x * 2, n - 1)

    assert down(leaf([1.0]), 5).tolist() == [32.0] and is_grad_enabled()


def test_recording_is_a_matter_of_the_thread():
    inside, checked, seen = threading.Event(), threading.Event(), []

    def other():
        seen.append(is_grad_enabled())
        with no_grad():
            inside.set()
            checked.wait(10)

    with no_grad():
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        assert not is_grad_enabled()
    assert is_grad_enabled()  # though the other thread still does not record
    checked.set()
    thread.join()
    assert seen == [True]


# ---- numbers in and out ----


def test_assigning_data_replaces_the_numbers_of_a_leaf_and_keeps_the_leaf():
    x = leaf([1.0, 2.0])
    x.data = x.data - 0.5 * x  # with a graph on the right
    assert x.tolist() == [0.5, 1.0] and x.is_leaf and x.requires_grad
    x.data = np.array([3.0, 4.0])
    (x * x).sum().backward()
    assert x.grad.tolist() == [6.0, 8.0]


def test_a_pullback_uses_the_numbers_from_before_an_assignment():
    x = leaf([3.0])
    y = x * x
    x.data = [100.0]
    y.backward([1.0])
    assert x.grad.tolist() == [6.0]


def test_a_tensor_is_not_a_copy_and_tensor_is():
    a = np.zeros(2)
    shared, copied = Tensor(a), tensor(a)
    a[0] = 1.0
    assert shared.tolist() == [1.0, 0.0] and copied.tolist() == [0.0, 0.0]
    assert Tensor(shared).array is a and Tensor(leaf([1.0])).requires_grad is False
    assert tensor(leaf([1.0]), requires_grad=True).requires_grad


def test_numpy_and_array_refuse_what_takes_part_in_a_graph():
    x = leaf([1.0])
    for t in (x, x * 2):
        for out in (t.numpy, lambda t=t: np.asarray(t), lambda t=t: np.sum(np.array(t))):
            with pytest.raises(RuntimeError, match="detach"):
                out()
    assert (x * 2).detach().numpy().tolist() == [2.0] and (x * 2).tolist() == [2.0]


def test_numpy_reads_a_tensor():
    t = Tensor(np.array([1.0, 2.0]))
    assert np.asarray(t) is t.numpy() or np.shares_memory(np.asarray(t), t.array)
    assert not np.shares_memory(np.array(t), t.array)
    assert np.asarray(t, dtype="float32").dtype == "float32"
    assert np.shares_memory(np.from_dlpack(t), t.array)


def test_scalars_and_what_is_not_one():
    t = Tensor([[2.5]])
    assert t.item() == float(t) == 2.5 and int(t) == 2 and bool(t)
    assert not Tensor(0.0) and not Tensor([[0.0]])  # it is the number that counts, not the length
    assert [10, 20, 30][Tensor(1)] == 20
    for f in (Tensor.item, float, int, bool):
        with pytest.raises(RuntimeError, match=r"2 elements, shape \(2,\)"):
            f(Tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="0 elements"):
        bool(Tensor([]))


def test_len_and_iteration_of_a_number_are_errors():
    assert len(Tensor([[1.0, 2.0]])) == 1 and [t.tolist() for t in Tensor([1, 2])] == [1, 2]
    for f in (len, list, iter):
        with pytest.raises(TypeError, match="0-d tensor"):
            f(Tensor(1.0))


@pytest.mark.parametrize("data", ["text", None, [[1.0], [1.0, 2.0]], object(), 1j, ["a"]])
def test_what_is_not_numeric_is_no_tensor(data):
    with pytest.raises((TypeError, ValueError)):
        Tensor(data)


def test_repr_shows_what_is_not_the_default():
    assert repr(Tensor([1.0, 2.0])) == "minima.Tensor(\n[1. 2.])"
    assert repr(Tensor([1])) == "minima.Tensor(\n[1])"
    assert repr(leaf(1.0)) == "minima.Tensor(\n1., dtype=float64, requires_grad=True)"


# ---- mistakes ----


def test_backward_on_what_is_no_scalar_says_how_to_make_one():
    y = leaf([1.0, 2.0]) * 2
    with pytest.raises(RuntimeError, match=r"only for scalar outputs.*\(2,\).*sum"):
        y.backward()
    (leaf([[3.0]]) * 2).backward()  # a single element will do


def test_backward_on_what_has_no_gradient_says_why():
    with pytest.raises(RuntimeError, match="does not require grad"):
        (Tensor([1.0]) * 2).backward()
    with no_grad():
        y = leaf(1.0) * 2
    with pytest.raises(RuntimeError, match="no_grad"):
        y.backward()


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1,), ()])
def test_backward_with_a_gradient_of_another_shape_names_both(shape):
    y = leaf([1.0, 2.0]) * 2
    with pytest.raises(RuntimeError, match=r"gradient has shape .* output has shape \(2,\)"):
        y.backward(np.ones(shape))
    with pytest.raises(RuntimeError):
        grad(y, y, Tensor(np.ones(shape)), create_graph=True)


def test_a_pullback_with_an_impossible_shape_is_caught():
    @op
    def wrong(xp, a):
        return a * 1, lambda g: xp.sum(g)

    @op
    def wrong_too(xp, a):
        return a * 1, lambda g: xp.concat([g, g])

    for f in (wrong, wrong_too):
        with pytest.raises(RuntimeError, match=r"pullback returned shape .* of shape \(3,\)"):
            f(leaf(np.ones(3))).backward(np.ones(3))


def test_an_error_inside_a_rule_keeps_its_kind_and_names_the_operation():
    @op
    def moody(xp, a, *, error):
        raise error("not today")

    for error in (IndexError, TypeError, NotImplementedError, RuntimeError, ValueError):
        with pytest.raises(error, match=r"moody\(\(2,\)\): not today"):
            moody(Tensor([1.0, 2.0]), error=error)


def test_an_operation_without_arguments_says_so():
    with pytest.raises(TypeError, match="at least one array"):
        ops.concat([])


# ---- gradients as values ----


def test_grad_of_several_outputs_adds_up():
    x, y = leaf(2.0), leaf(3.0)
    by_x, by_y = grad([x * y, x * x], [x, y], [np.array(1.0), np.array(10.0)])
    assert by_x.item() == 3.0 + 40.0 and by_y.item() == 2.0
    assert x.grad is None and y.grad is None
    z = x * y
    assert grad([z, z], x)[0].item() == 6.0
    assert grad(x * y, x, [Tensor(2.0)])[0].item() == 6.0
    v = leaf([1.0, 2.0])
    assert grad(v * v, v, [10.0, 1.0])[0].tolist() == [20.0, 4.0]  # numbers: one cotangent


def test_grad_of_an_output_that_is_part_of_another():
    x = leaf(2.0)
    y = x * x
    z = y * y
    by_x, by_y = grad([z, y], [x, y])
    assert by_x.item() == 4 * 8 + 4 and by_y.item() == 2 * 4 + 1


def test_grad_by_what_is_no_leaf_and_by_the_output():
    x = leaf(2.0)
    y = x * 3
    z = y * y
    by_z, by_y, by_x = grad(z, [z, y, x])
    assert (by_z.item(), by_y.item(), by_x.item()) == (1.0, 12.0, 36.0)


def test_grad_by_an_unused_input_is_refused_or_none():
    x, unused = leaf(2.0), leaf(1.0)
    with pytest.raises(RuntimeError, match=r"\[1\].*allow_unused=True"):
        grad(x * 2, [x, unused])
    by_x, by_unused = grad(x * 2, [x, unused], allow_unused=True)
    assert by_x.item() == 2.0 and by_unused is None


def test_grad_without_create_graph_has_no_graph():
    x = leaf(2.0)
    assert not grad(x**3, x)[0].requires_grad
    (g,) = grad(x**3, x, create_graph=True)
    assert g.requires_grad and not g.is_leaf


def test_the_second_derivative_of_exp_is_exp():
    x = leaf(0.5)
    y = x.exp()
    for _ in range(4):
        (y,) = grad(y, x, create_graph=True)
        assert y.item() == pytest.approx(np.exp(0.5))


def test_mixed_second_derivatives_are_symmetric():
    x, y = leaf(0.7), leaf(1.3)
    f = (x * y).tanh() * x.exp() / y
    by_x, by_y = grad(f, [x, y], create_graph=True)
    (xy,), (yx,) = grad(by_x, y, retain_graph=True), grad(by_y, x)
    assert xy.item() == pytest.approx(yx.item(), rel=1e-14)


def test_a_penalty_on_the_size_of_a_gradient_reaches_the_leaves():
    x, w = Tensor(np.array([[1.0, 2.0]])), leaf([[0.3], [0.4]])
    y = (x @ w).tanh().sum()
    (g,) = grad(y, w, create_graph=True)
    (g * g).sum().backward()
    slope = 1 - np.tanh(1.1) ** 2
    expected = 2 * 5 * slope * -2 * np.tanh(1.1) * slope * np.array([[1.0], [2.0]])
    np.testing.assert_allclose(w.grad.numpy(), expected)


def test_backward_with_create_graph_leaves_gradients_that_can_be_differentiated():
    x = leaf(2.0)
    (x**3).backward(create_graph=True)
    (x**2).backward(create_graph=True)
    assert x.grad.item() == 16.0 and grad(x.grad, x)[0].item() == 14.0


def test_create_graph_follows_the_cotangent_too():
    x, g = leaf([2.0]), leaf([5.0])
    (by_x,) = grad(x * x, x, g, create_graph=True)
    assert grad(by_x, [x, g], np.ones(1))[1].tolist() == [4.0]


# ---- rules and kernels ----


def cubic():
    @op
    def cube(xp, a, *, times=1):
        "The cube."
        return times * a * a * a, lambda g: 3 * times * g * a * a

    return cube


def test_a_kernel_is_read_instead_of_the_rule_on_its_backend():
    cube, calls = cubic(), []
    assert cube(Tensor([2.0])).tolist() == [8.0]  # the rule has been read here before

    @cube.kernel("cpu")
    def fast(xp, a, *, times=1):
        calls.append("value")
        return times * xp.power(a, 3), lambda g: calls.append("pullback") or 3 * times * g * a * a

    x = leaf([2.0])
    y = cube(x, times=2)
    y.backward([1.0])
    assert y.tolist() == [16.0] and x.grad.tolist() == [24.0] and calls == ["value", "pullback"]
    assert fast(np, np.array([2.0]))[0].tolist() == [8.0]  # the decorator returns what it got


def test_a_kernel_of_another_backend_is_not_read():
    cube = cubic()
    cube.kernel("elsewhere")(lambda xp, a, *, times=1: 1 / 0)
    assert cube(Tensor([2.0])).tolist() == [8.0]


def test_under_create_graph_the_rule_is_read_and_never_the_kernel():
    cube = cubic()

    @cube.kernel("cpu")
    def opaque(xp, a, *, times=1):
        assert isinstance(a, np.ndarray)
        return times * a**3, lambda g: 3 * times * g * a**2

    x = leaf([2.0])
    (first,) = grad(cube(x, times=2), x, np.ones(1), create_graph=True)
    (second,) = grad(first, x, np.ones(1))
    assert first.tolist() == [24.0] and second.tolist() == [24.0]


def test_an_operation_knows_its_rule_its_name_and_its_document():
    cube = cubic()
    assert cube.__name__ == "cube" and cube.__doc__ == "The cube."
    value, pull = cube.rule(np, np.array(2.0))
    assert value == 8.0 and pull(1.0) == 12.0
    assert cube.on(np, np.array(2.0)) == 8.0 and type(cube.on(ops, Tensor(2.0))) is Tensor


def test_a_rule_may_return_fewer_pullbacks_than_it_has_arguments():
    @op
    def scaled(xp, a, factor):
        return a * factor, lambda g: g * factor

    x, factor = leaf([2.0]), leaf([3.0])
    scaled(x, factor).backward([1.0])
    assert x.grad.tolist() == [3.0] and factor.grad is None
    with pytest.raises(RuntimeError, match="second time|not used"):
        grad(scaled(x, factor), factor, np.ones(1))


def test_an_operation_without_pullbacks_records_nothing():
    @op
    def rounded(xp, a):
        return xp.round(a)

    y = rounded(leaf([1.4]))
    assert y.tolist() == [1.0] and not y.requires_grad and y.is_leaf


@pytest.mark.parametrize("trailing", [(), (None,)], ids=["left out", "None"])
def test_an_argument_without_a_pullback_gets_no_gradient_even_if_it_wants_one(trailing):
    @op
    def picked(xp, a, b):
        return a * b, lambda g: g * b, *trailing

    x, y = leaf([2.0]), leaf([3.0])
    picked(x, y).backward([10.0])
    assert x.grad.tolist() == [30.0] and y.grad is None
    assert not picked(Tensor([1.0]), y).requires_grad


def test_a_gradient_that_was_changed_between_two_walks_is_not_the_old_one():
    x, w = (Tensor(np.ones(s), requires_grad=True) for s in ((2, 3), (3, 4)))
    y, g = ops.linear(x, w, activation="tanh"), np.ones((2, 4))
    (first,) = grad(y, x, g, retain_graph=True)
    g *= 2
    (second,) = grad(y, x, g)
    assert np.allclose(second.numpy(), 2 * first.numpy())
