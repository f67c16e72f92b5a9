"Hooks, forward and backward: the same scenes are played in minima and in PyTorch, and compared."

import copy
import gc
import pickle
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from minima import nn
from minima.autograd import Tensor, grad, is_grad_enabled, no_grad, op
from minima.nn.hooks import _through_gate
from minima.testing import gradcheck


def ones(*shape, dtype="float32"):
    return Tensor(np.ones(shape), dtype=dtype)


class Scale(nn.Module):
    def __init__(self, value=2.0):
        self.factor = nn.Parameter([value])

    def forward(self, x):
        return x * self.factor


class Power(nn.Module):
    def forward(self, x, exponent=1):
        return x**exponent


# ---- forward hooks ----


def test_hooks_run_in_order_and_each_sees_what_the_one_before_returned():
    layer, seen = Scale(), []
    layer.register_forward_hook(lambda m, args, out: seen.append(("a", m is layer, out.item())))
    layer.register_forward_hook(lambda m, args, out: out + args[0])
    layer.register_forward_hook(lambda m, args, out: seen.append(("c", m is layer, out.item())))
    assert layer(Tensor([10.0])).item() == 30.0
    assert seen == [("a", True, 20.0), ("c", True, 30.0)]


def test_a_hook_can_be_removed_by_handle_or_by_leaving_a_block():
    layer, seen = Scale(), []
    first = layer.register_forward_hook(lambda *_: seen.append(1))
    with layer.register_forward_hook(lambda *_: seen.append(2)):
        layer(Tensor([1.0]))
    first.remove()
    first.remove()  # once more does nothing
    layer(Tensor([1.0]))
    assert seen == [1, 2]
    with pytest.raises(KeyError, match="out"):
        with layer.register_forward_hook(lambda *_: seen.append(3)):
            raise KeyError("out")
    layer(Tensor([1.0]))
    assert seen == [1, 2]


def test_a_hook_may_remove_itself_and_another_is_still_called():
    layer, seen = Scale(), []

    def once(*_):
        seen.append("once")
        handle.remove()

    handle = layer.register_forward_hook(once)
    layer.register_forward_hook(lambda *_: seen.append("always"))
    layer(Tensor([1.0]))
    layer(Tensor([1.0]))
    assert seen == ["once", "always", "always"]


def test_hooks_with_kwargs_get_them():
    layer, seen = Power(), []
    layer.register_forward_hook(lambda m, a, k, out: seen.append(dict(k)), with_kwargs=True)
    layer.register_forward_hook(lambda m, a, out: seen.append(len(a)))
    assert layer(Tensor([3.0]), exponent=2).item() == 9.0
    assert seen == [{"exponent": 2}, 1]


def test_hooks_of_one_layer_are_not_anothers():
    a, b, seen = Scale(), Scale(), []
    a.register_forward_hook(lambda *_: seen.append("a"))
    b(Tensor([1.0]))
    assert seen == []


def test_gradients_flow_through_what_a_hook_returns():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda m, args, out: out * 3.0)
    layer(ones(1, 2)).sum().backward()
    assert layer.bias.grad.tolist() == [[3.0, 3.0]]


# ---- the same scenes in both libraries ----

OURS = SimpleNamespace(
    Module=nn.Module,
    leaf=lambda *a: Tensor(np.array(a), requires_grad=True),
    data=lambda *a: Tensor(np.array(a)),
    grad=grad,
    no_grad=no_grad,
)


def as_torch(torch):
    return SimpleNamespace(
        Module=torch.nn.Module,
        leaf=lambda *a: torch.tensor(a, dtype=torch.float64, requires_grad=True),
        data=lambda *a: torch.tensor(a, dtype=torch.float64),
        grad=torch.autograd.grad,
        no_grad=torch.no_grad,
    )


def plain(value):
    "Tensors of either library as lists, wherever they are in `value`."
    if isinstance(value, (tuple, list)):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def module_of(lib, function):
    class Given(lib.Module):
        def forward(self, *args, **kwargs):
            return function(*args, **kwargs)

    return Given()


def noted(log, word, result=None):
    "A hook that writes down what it is shown, and returns `result`, or what it makes of it."

    def hook(module, *shown):
        log.append((word, plain(shown)))
        return result(*shown) if callable(result) else result

    return hook


def pre_hooks(lib, log):
    m = module_of(lib, lambda x, y=None, scale=1.0: x * scale if y is None else x * y * scale)
    m.register_forward_pre_hook(noted(log, "a"))
    handle = m.register_forward_pre_hook(noted(log, "b", lambda args: (args[0] * 2,)))
    m.register_forward_pre_hook(noted(log, "c", lambda args: args[0] + 1))  # not in a tuple
    m.register_forward_pre_hook(noted(log, "first"), prepend=True)
    both = noted(log, "d", lambda args, kwargs: ((*args, args[0]), {**kwargs, "scale": 10.0}))
    m.register_forward_pre_hook(both, with_kwargs=True)
    m.register_forward_pre_hook(noted(log, "e"), with_kwargs=True)
    log.append(plain(m(lib.leaf(1.0, 3.0), scale=0.5)))
    handle.remove()
    log.append(plain(m(lib.leaf(1.0, 3.0))))


def forward_hooks(lib, log):
    m = module_of(lib, lambda x, scale=1.0: (x * scale, "text"))
    m.register_forward_hook(noted(log, "a"))
    m.register_forward_hook(noted(log, "b", lambda args, out: out[0] + args[0]))
    m.register_forward_hook(noted(log, "first"), prepend=True)
    m.register_forward_hook(noted(log, "c"), with_kwargs=True)
    m.register_forward_pre_hook(noted(log, "pre", lambda args: (args[0] + 1,)))
    log.append(plain(m(lib.leaf(1.0, 3.0), scale=2.0)))


def always(lib, log):
    def broken(x):
        log.append("broken")
        raise ValueError("broken")

    m = module_of(lib, broken)
    m.register_forward_hook(noted(log, "never"))
    m.register_forward_hook(noted(log, "always"), always_call=True)
    m.register_forward_hook(noted(log, "with"), always_call=True, with_kwargs=True)
    with pytest.raises(ValueError, match="broken"):
        m(lib.leaf(1.0))
    m = module_of(lib, lambda x: x * 2)

    def fails(*shown):
        raise KeyError("in a hook")

    m.register_forward_hook(noted(log, "before", lambda args, out: out + 1), always_call=True)
    m.register_forward_hook(fails)
    m.register_forward_hook(noted(log, "after"), always_call=True)
    with pytest.raises(KeyError):
        m(lib.leaf(1.0))


def one_in_one_out(lib, log):
    m, x = module_of(lib, lambda x: x * x * 3), lib.leaf(1.0, -2.0)
    m.register_full_backward_hook(noted(log, "full"))
    m.register_full_backward_pre_hook(noted(log, "pre"))
    (m(x) * lib.data(5.0, 7.0)).sum().backward()
    log.append(plain(x.grad))


def replaced(lib, log):
    m, x = module_of(lib, lambda x: x * x * 3), lib.leaf(1.0, -2.0)
    m.register_full_backward_hook(noted(log, "a", lambda i, o: (i[0] * 2,)))
    m.register_full_backward_hook(noted(log, "b"))
    m.register_full_backward_hook(noted(log, "first"), prepend=True)
    m.register_full_backward_pre_hook(noted(log, "pre a", lambda o: (o[0] * 10,)))
    m.register_full_backward_pre_hook(noted(log, "pre b"))
    m.register_full_backward_pre_hook(noted(log, "pre first"), prepend=True)
    m(x).sum().backward()
    log.append(plain(x.grad))


def several(lib, log):
    m = module_of(lib, lambda x, word, y, z: (x * y, word, y * z * z))
    x, y, z = lib.leaf(1.0, 2.0), lib.leaf(3.0, 4.0), lib.leaf(5.0, 6.0)
    m.register_full_backward_hook(noted(log, "full", lambda i, o: (i[0], None, i[2] * 2, None)))
    m.register_full_backward_pre_hook(noted(log, "pre"))
    a, word, b = m(x, "word", y, z)
    (a + b * b).sum().backward()
    log.append(plain([x.grad, y.grad]))
    log.append(z.grad is None or plain(z.grad) == [0.0, 0.0])  # None stops a gradient


def partly_used(lib, log):
    m = module_of(lib, lambda x, y, z: (x * 2 + z, x * 3))
    x, y = lib.leaf(1.0, 2.0), lib.leaf(3.0)
    m.register_full_backward_hook(noted(log, "full"))
    m.register_full_backward_pre_hook(noted(log, "pre"))
    m(x, y, lib.data(1.0, 1.0))[0].sum().backward()
    log.append(plain([x.grad, y.grad]))
    m(x, y, lib.data(1.0, 1.0))[1].sum().backward()
    log.append(plain([x.grad, y.grad]))


def no_input_wants_it(lib, log):
    weight = lib.leaf(3.0)
    m = module_of(lib, lambda x, y: (x * weight, weight * 1))
    m.register_full_backward_hook(noted(log, "full"))
    m.register_full_backward_hook(noted(log, "again", (None, None)))
    m.register_full_backward_pre_hook(noted(log, "pre", lambda o: (o[0] * 2, o[1])))
    m(lib.data(1.0, 2.0), 5)[0].sum().backward()
    log.append(plain(weight.grad))


def one_tensor_twice(lib, log):
    m, x = module_of(lib, lambda x, y: x * y), lib.leaf(2.0)
    m.register_full_backward_hook(noted(log, "full"))
    m(x, x * 3).sum().backward()
    m(x, x).sum().backward()
    log.append(plain(x.grad))


def output_is_input(lib, log):
    m, x = module_of(lib, lambda x: x), lib.leaf(2.0)
    m.register_full_backward_hook(noted(log, "full", lambda i, o: (i[0] * 4,)))
    m(m(x)).sum().backward()
    log.append(plain(x.grad))


def nested(lib, log):
    inner = module_of(lib, lambda x: x * 2)
    outer, x = module_of(lib, lambda x: inner(x) * inner(x + 1)), lib.leaf(2.0)
    outer.register_full_backward_hook(noted(log, "outer"))
    inner.register_full_backward_hook(noted(log, "inner"))
    outer(x).sum().backward()
    log.append(plain(x.grad))


def recording_off(lib, log):
    m, x = module_of(lib, lambda x: x * 2), lib.leaf(2.0)
    m.register_full_backward_hook(noted(log, "full"))
    with lib.no_grad():
        log.append(m(x).requires_grad)
    m(lib.data(1.0))


def removed(lib, log):
    m, x = module_of(lib, lambda x: x * 2), lib.leaf(2.0)
    handle = m.register_full_backward_hook(noted(log, "full"))
    y = m(x)
    handle.remove()
    y.sum().backward()  # who watched the call sees what comes back from it
    m(x).sum().backward()


def second_derivative(lib, log):
    m, x = module_of(lib, lambda x: x * x * x), lib.leaf(2.0)
    m.register_full_backward_hook(noted(log, "full", lambda i, o: (i[0] * 2,)))
    (g,) = lib.grad((m(x) ** 2).sum(), x, create_graph=True)
    log.append(plain([g, *lib.grad(g.sum(), x)]))
    (g,) = lib.grad(m(x).sum(), x, create_graph=True)  # the second walk meets no output
    log.append(plain([g, *lib.grad(g.sum(), x)]))


def walked_twice(lib, log):
    m, x = module_of(lib, lambda x, y: x * y), lib.leaf(2.0)
    m.register_full_backward_hook(noted(log, "full"))
    y = m(x, lib.leaf(5.0)).sum()
    y.backward(retain_graph=True)
    y.backward()
    log.append(plain(x.grad))


def wrong_counts(lib, log):
    for where, result in [
        ("register_full_backward_hook", lambda *shown: (None, None)),
        ("register_full_backward_pre_hook", lambda *shown: ()),
    ]:
        m = module_of(lib, lambda x: x * 2)
        getattr(m, where)(noted(log, where, result))
        with pytest.raises(RuntimeError, match="Backward .*hook returned an invalid number") as e:
            m(lib.leaf(1.0)).sum().backward()
        log.append(str(e.value))
    m, weight = module_of(lib, lambda x: x * weight), lib.leaf(2.0)
    m.register_full_backward_hook(noted(log, "first", lambda i, o: o))
    with pytest.raises(RuntimeError, match="where no input requires gradient") as e:
        m(lib.data(1.0)).sum().backward()
    log.append(str(e.value))
    m = module_of(lib, lambda x: x)
    m.register_forward_pre_hook(lambda *shown: 5, with_kwargs=True)
    with pytest.raises(RuntimeError, match="forward pre-hook must return None or a tuple"):
        m(lib.leaf(1.0))


SCENES = [
    pre_hooks, forward_hooks, always, one_in_one_out, replaced, several, partly_used,
    no_input_wants_it, one_tensor_twice, output_is_input, nested, recording_off, removed,
    second_derivative, walked_twice, wrong_counts,
]  # fmt: skip


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_hooks_see_and_do_what_torchs_hooks_do(torch, scene):
    ours, theirs = [], []
    scene(OURS, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scene(as_torch(torch), theirs)
    assert ours == theirs and ours


# ---- what is particular ----


def test_other_outputs_than_tensors_and_tuples_are_not_watched_and_that_is_said(torch):
    for lib in (OURS, as_torch(torch)):
        m, log, x = module_of(lib, lambda x: {"y": x * 2}), [], lib.leaf(1.0)
        m.register_full_backward_hook(noted(log, "full"))
        with pytest.warns(UserWarning, match="Tensor or a tuple of"):
            m(x)["y"].sum().backward()
        assert log == [] and x.grad.tolist() == [2.0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_hooks_see_the_dtype_of_the_layer(torch, dtype):
    told = []
    for n, x in (
        (nn, Tensor([[1.0, 2.0]], dtype=dtype, requires_grad=True)),
        (torch.nn, torch.ones(1, 2, dtype=getattr(torch, dtype), requires_grad=True)),
    ):
        layer, log = n.Linear(2, 3).to(x.dtype), []
        layer.register_full_backward_hook(lambda m, i, o, log=log: log.extend([*i, *o]))
        layer.register_full_backward_pre_hook(lambda m, o, log=log: log.append(o[0]))
        layer(x).sum().backward()
        told.append([str(g.dtype).split(".")[-1] for g in [*log, x.grad]])
    assert told[0] == told[1] == [dtype] * 4


def test_a_named_tuple_stays_one():
    from minima.operators import sort

    m, log = module_of(OURS, lambda x: sort(x)), []
    m.register_full_backward_hook(noted(log, "full"))
    out = m(OURS.leaf(3.0, 1.0))
    out.values.sum().backward()
    assert out._fields == ("values", "indices") and log == [
        ("full", [[[1.0, 1.0]], [[1.0, 1.0], None]])
    ]


@pytest.mark.parametrize("result", [ones(3), ones(1, 2), ones()])
def test_a_hook_that_changes_a_shape_is_named(result):
    m = nn.Tanh()
    m.register_full_backward_hook(lambda *_: (result,))
    with pytest.raises(RuntimeError, match=r"backward hook made a gradient of \(2,\) one of"):
        m(Tensor([1.0, 2.0], requires_grad=True)).sum().backward()


def test_a_single_tensor_need_not_be_wrapped_and_the_dtype_stays():
    m, x = nn.Identity(), Tensor([1.0, 2.0], requires_grad=True)
    m.register_full_backward_hook(lambda m, i, o: i[0].to("float64") * 3)
    m(x).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0] and x.grad.dtype == "float32"


def test_a_hook_may_compute_with_parameters_without_being_recorded():
    layer, x = Scale(3.0), Tensor([1.0], requires_grad=True)
    layer.register_full_backward_hook(lambda m, i, o: (i[0] * m.factor,))
    layer(x).sum().backward()
    assert x.grad.tolist() == [9.0] and not x.grad.requires_grad
    assert layer.factor.grad.tolist() == [1.0]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_hooks_are_recorded_only_where_the_walk_back_is(torch):
    for n, x, on in (
        (nn, Tensor([2.0], requires_grad=True), is_grad_enabled),
        (torch.nn, torch.ones(1, requires_grad=True), torch.is_grad_enabled),
    ):
        layer, log = n.Tanh(), []
        layer.register_full_backward_pre_hook(lambda m, o, on=on, log=log: log.append(on()))
        layer.register_full_backward_hook(lambda m, i, o, on=on, log=log: log.append(on()))
        layer(x).sum().backward()
        layer(x).sum().backward(create_graph=True)
        assert log == [False, False, True, True]


def test_where_nothing_is_recorded_the_very_tensors_go_in_and_out():
    layer, x = nn.Identity(), Tensor([1.0], requires_grad=True)
    layer.register_full_backward_hook(lambda *_: None)
    with no_grad():
        assert layer(x) is x
    assert layer(x) is not x and layer(x.detach()).requires_grad is False


def test_what_a_hook_keeps_is_not_changed_later():
    layer, kept, x = Scale(3.0), [], Tensor([1.0, 2.0], requires_grad=True)
    layer.register_full_backward_hook(lambda m, i, o: kept.extend([*i, *o]))
    y = layer(x).sum()
    for _ in range(3):
        y.backward(retain_graph=True)
    assert all(g.tolist() == [3.0, 3.0] for g in kept[::2]) and x.grad.tolist() == [9.0, 9.0]
    assert all(g.tolist() == [1.0, 1.0] for g in kept[1::2])


def test_gradients_through_gates_are_what_differences_say():
    def through(x, y):
        x, y = _through_gate((x, y), lambda gradients: gradients, fill=True)
        return _through_gate((x * y.tanh(), x.exp()), lambda gradients: gradients, fill=False)[0]

    rng = np.random.default_rng(0)
    assert gradcheck(through, [rng.normal(size=(2, 3)), rng.normal(size=(1, 3))], order=2)


def test_layers_of_all_kinds_have_torchs_gradients_when_hooked(torch):
    def build(n):
        return n.Sequential(n.Linear(4, 3), n.BatchNorm1d(3), n.ReLU(), n.Linear(3, 2))

    from minima.testing import vs_torch

    model, seen = build(nn), []
    for module in model.modules():
        module.register_full_backward_hook(lambda m, i, o: seen.append(type(m).__name__))
        module.register_full_backward_pre_hook(lambda m, o: o)
    vs_torch(model, build(torch.nn), [np.random.default_rng(0).normal(size=(5, 4))], verbose=False)
    assert seen == ["Linear", "ReLU", "BatchNorm1d", "Linear", "Sequential"]


def test_a_hooked_graph_is_freed_by_reference_counts_alone():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), []
    for module in model:
        module.register_full_backward_hook(lambda m, i, o: seen.append(m))
    gc.disable()
    try:
        x = Tensor(np.ones((1, 2)), dtype="float32", requires_grad=True)
        y = model(x)
        ghosts = [weakref.ref(x), weakref.ref(y)]
        y.sum().backward()
        del x, y
        assert [ghost() for ghost in ghosts] == [None, None] and len(seen) == 2
    finally:
        gc.enable()


def test_a_call_without_hooks_makes_no_gate_and_one_with_forward_hooks_only_neither():
    made = []
    layer = Scale()
    y = layer(Tensor([1.0], requires_grad=True))
    assert layer._hooks is None and y._rule.__name__ == "multiply"
    layer.register_forward_hook(lambda m, args, out: made.append(out))
    y = layer(Tensor([1.0], requires_grad=True))
    assert y is made[0] and y._rule.__name__ == "multiply"


LOG = []


def note(module, args, out):
    LOG.append(module)


def note_gradients(module, grad_input, grad_output):
    LOG.append(module)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_has_the_hooks_and_its_own_register(copied):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    handle = model[0].register_forward_hook(note)
    model[0].register_full_backward_hook(note_gradients)
    twin = copied(model)
    LOG.clear()
    twin(ones(1, 2)).sum().backward()
    assert LOG == [twin[0], twin[0]] and twin[0] is not model[0]
    handle.remove()
    LOG.clear()
    twin(ones(1, 2))
    model(ones(1, 2))
    assert LOG == [twin[0]]  # the copy's is still there


def test_hooks_are_not_part_of_the_model():
    "A hook may hold other modules; they are not found by the walk, saved or trained."
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    layer.register_forward_hook(lambda m, args, out: other(out))
    layer.register_full_backward_hook(other.forward)
    assert len(layer.parameters()) == 2 and layer.children() == []


def test_a_failing_forward_hook_that_is_always_called_only_warns():
    def refuse(*shown):
        raise KeyError("refused")

    layer = nn.Linear(3, 1)
    layer.register_forward_hook(refuse, always_call=True)
    with pytest.warns(UserWarning, match="a forward hook failed.*refused"):
        with pytest.raises(RuntimeError, match="^Linear expects 3"):
            layer(ones(1, 2))
    with pytest.raises(KeyError):
        layer(ones(1, 3))


def test_a_backward_hook_that_fails_does_not_spoil_the_next_walk():
    layer, fail = Scale(3.0), [True]

    def hook(module, grad_input, grad_output):
        if fail:
            raise ValueError(fail.pop())

    layer.register_full_backward_hook(hook)
    x = Tensor([2.0], requires_grad=True)
    y = layer(x).sum()
    with pytest.raises(ValueError):
        y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [3.0]


def test_hooks_are_handed_tuples():
    seen, layer = [], Scale(3.0)
    layer.register_full_backward_pre_hook(lambda module, grad_output: seen.append(grad_output))
    layer.register_full_backward_hook(lambda module, *grads: seen.extend(grads))
    layer(Tensor([2.0], requires_grad=True)).sum().backward()
    assert [type(grads) for grads in seen] == [tuple] * 3


def test_a_users_op_in_a_module_is_watched_too():
    @op
    def thrice(xp, a):
        "Three times `a`."
        return a * 3, lambda g: g * 3

    m, log = module_of(OURS, thrice), []
    m.register_full_backward_hook(noted(log, "full"))
    m(OURS.leaf(1.0)).sum().backward()
    assert log == [("full", [[[3.0]], [[1.0]]])]
