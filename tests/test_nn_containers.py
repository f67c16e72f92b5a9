"Sequential, ModuleList and ModuleDict: the same operations in minima and in PyTorch, compared."

import copy
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from minima import nn
from minima.autograd import Tensor


def ones(*shape, dtype="float32"):
    return Tensor(np.ones(shape), dtype=dtype)


def test_a_sequential_is_a_sequence():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    model = nn.Sequential(a, b)
    assert model.append(c) is model and model.modules == (a, b, c) and len(model) == 3
    assert model[0] is a and model[-1] is c and [*model] == [a, b, c]
    assert isinstance(model[1:], nn.Sequential) and model[1:].modules == (b, c)
    assert [(x, y) for x in model for y in model][:3] == [(a, a), (a, b), (a, c)]  # nested loops
    assert nn.Sequential()(5) == 5
    with pytest.raises(IndexError):
        model[3]


def test_a_sequential_takes_plain_functions():
    model = nn.Sequential(nn.Linear(2, 2), lambda x: x * 0.0)
    assert model(ones(1, 2)).tolist() == [[0.0, 0.0]] and len(model.parameters()) == 2


def test_a_module_list_is_a_list():
    a, b, c = nn.ReLU(), nn.Tanh(), nn.Linear(1, 1)
    layers = nn.ModuleList([a])
    assert layers.append(c) is layers and layers.extend([b, b]) is layers and len(layers) == 4
    layers.insert(1, b)
    layers[0] = c
    assert [*layers] == [c, b, c, b, b] and layers[1] is b and [*layers[:2]] == [c, b]
    assert isinstance(layers[:2], nn.ModuleList) and len(layers.parameters()) == 2
    assert [*layers.state_dict()] == ["0.weight", "0.bias"]
    with pytest.raises(NotImplementedError, match="ModuleList"):
        layers(1)


def test_modules_of_a_sequential_is_a_tuple_and_a_method():
    a, b = nn.Linear(2, 2), nn.Sequential(nn.ReLU())
    model = nn.Sequential(a, b)
    assert isinstance(model.modules, tuple) and model.modules == (a, b)
    assert model.modules() == [model, a, b, b[0]]
    assert nn.ModuleList([a, b]).modules()[1:] == [a, b, b[0]]
    assert [*nn.ModuleDict({"a": a}).modules()][1:] == [a]


# ---- the same operations in both libraries ----


def linear(n, i):
    return n.Linear(i, 1, bias=False)


def sequential(n):
    return n.Sequential(*(linear(n, i) for i in range(1, 6)))


def listed(n):
    return n.ModuleList([linear(n, i) for i in range(1, 6)])


def delete(model, key):
    del model[key]


def put(model, key, value):
    model[key] = value


def plus(model, other):
    model += other


SEQUENCE_OPERATIONS = {
    "append": lambda n, m: m.append(linear(n, 9)),
    "append twice": lambda n, m: m.append(n.Tanh()).append(n.Tanh()),
    "extend": lambda n, m: m.extend([linear(n, 8), n.Tanh()]),
    "extend by itself": lambda n, m: m.extend([*m]),
    "insert first": lambda n, m: (m.insert(0, linear(n, 9)), None)[1],
    "insert in the middle": lambda n, m: (m.insert(2, linear(n, 9)), None)[1],
    "insert last": lambda n, m: (m.insert(5, linear(n, 9)), None)[1],
    "pop": lambda n, m: m.pop(1),
    "pop from the end": lambda n, m: m.pop(-2),
    "pop a slice": lambda n, m: m.pop(slice(1, 3)),
    "del": lambda n, m: delete(m, 2),
    "del from the end": lambda n, m: delete(m, -1),
    "del a slice": lambda n, m: delete(m, slice(None, None, 2)),
    "del a slice backwards": lambda n, m: delete(m, slice(3, 0, -1)),
    "set": lambda n, m: put(m, 1, n.Tanh()),
    "set from the end": lambda n, m: put(m, -1, n.Tanh()),
    "get": lambda n, m: m[3],
    "get from the end": lambda n, m: m[-4],
    "slice": lambda n, m: m[1:4],
    "slice with steps": lambda n, m: m[::-2],
    "empty slice": lambda n, m: m[4:2],
    "delete, then append": lambda n, m: (delete(m, 0), m.append(n.Tanh()))[1],
    "add": lambda n, m: m + type(m)(*([m[0]] if isinstance(m, n.Sequential) else [[m[0]]])),
    "add in place": lambda n, m: plus(m, n.Sequential(n.Tanh(), n.ReLU())),
    "add_module": lambda n, m: m.add_module("named", n.Tanh()),
    "get_submodule": lambda n, m: m.get_submodule("3"),
    "getattr": lambda n, m: getattr(m, "3"),
}


@pytest.mark.parametrize("make", [sequential, listed])
@pytest.mark.parametrize("name", SEQUENCE_OPERATIONS)
def test_a_sequence_changes_as_torchs_does(torch, make, name):
    shown = []
    for n in (nn, torch.nn):
        model = make(n)
        result = SEQUENCE_OPERATIONS[name](n, model)
        names = [key for key, _ in model.named_children()]
        paths = [path for path, _ in model.named_parameters()]
        shown.append((repr(model), repr(result), names, len(model), paths))
    assert shown[0] == shown[1]


SEQUENTIAL_OPERATIONS = {
    "times": lambda n, m: m * 2,
    "times from the left": lambda n, m: 3 * m,
    "times itself": lambda n, m: m.__imul__(2),
    "from a dict": lambda n, m: n.Sequential(OrderedDict(a=m[0], b=n.Tanh())),
    "member of a dict": lambda n, m: n.Sequential(OrderedDict(a=m[0], b=n.Tanh())).b,
    "slice of a dict": lambda n, m: n.Sequential(OrderedDict(a=m[0], b=n.Tanh(), c=m[1]))[1:],
    "set in a dict": lambda n, m: put(n.Sequential(OrderedDict(a=m[0])), 0, n.Tanh()),
    "append to a dict": lambda n, m: n.Sequential(OrderedDict(a=m[0])).append(n.Tanh()),
}


@pytest.mark.parametrize("name", SEQUENTIAL_OPERATIONS)
def test_a_sequential_changes_as_torchs_does(torch, name):
    shown = []
    for n in (nn, torch.nn):
        model = sequential(n)
        shown.append((repr(SEQUENTIAL_OPERATIONS[name](n, model)), repr(model)))
    assert shown[0] == shown[1]


REFUSED = {
    "index": (lambda n, m: m[5], IndexError),
    "negative index": (lambda n, m: m[-6], IndexError),
    "set": (lambda n, m: put(m, 5, n.Tanh()), IndexError),
    "del": (lambda n, m: delete(m, 5), IndexError),
    "pop": (lambda n, m: m.pop(7), IndexError),
    "attribute": (lambda n, m: m.nothing, AttributeError),
    "float": (lambda n, m: m[1.0], TypeError),
    "add_module twice": (lambda n, m: m.add_module("forward", n.Tanh()), KeyError),
    "no module": (lambda n, m: m.add_module("x", 5), TypeError),
}


@pytest.mark.parametrize("make", [sequential, listed])
@pytest.mark.parametrize("name", REFUSED)
def test_a_sequence_refuses_what_torchs_refuses(torch, make, name):
    call, kind = REFUSED[name]
    for n in (nn, torch.nn):
        with pytest.raises(kind):
            call(n, make(n))


@pytest.mark.parametrize(
    "call, kind",
    [
        (lambda n, m: m + n.ModuleList([n.Tanh()]), ValueError),
        (lambda n, m: m * 0, ValueError),
        (lambda n, m: m * 1.5, TypeError),
        (lambda n, m: m.insert(6, n.Tanh()), IndexError),
    ],
)
def test_a_sequential_refuses_what_torchs_refuses(torch, call, kind):
    for n in (nn, torch.nn):
        with pytest.raises(kind):
            call(n, sequential(n))


def test_appending_to_a_slice_does_not_overwrite_a_member():
    "A slice keeps its names, 3 and 4, so the next free number is not its length."
    part = sequential(nn)[3:].append(nn.Tanh()).append(nn.ReLU())
    assert [type(m).__name__ for m in part] == ["Linear", "Linear", "Tanh", "ReLU"]
    assert [type(m).__name__ for m in sequential(nn)[1:2].append(nn.Tanh())] == ["Linear", "Tanh"]


# ---- ModuleDict ----


def heads(n):
    return n.ModuleDict({"a": linear(n, 1), "b": n.Sequential(linear(n, 2))})


DICT_OPERATIONS = {
    "get": lambda n, m: m["b"],
    "attribute": lambda n, m: m.a,
    "set": lambda n, m: put(m, "c", n.Tanh()),
    "set again": lambda n, m: put(m, "a", n.Tanh()),
    "del": lambda n, m: delete(m, "a"),
    "pop": lambda n, m: m.pop("b"),
    "clear": lambda n, m: m.clear(),
    "update": lambda n, m: m.update({"z": n.Tanh(), "a": n.ReLU()}),
    "update by pairs": lambda n, m: m.update([("z", n.Tanh()), ("y", n.ReLU())]),
    "update by another": lambda n, m: m.update(n.ModuleDict({"z": n.Tanh()})),
    "contains": lambda n, m: ("a" in m, "z" in m),
    "iter": lambda n, m: [*m],
    "keys": lambda n, m: [*m.keys()],
    "values": lambda n, m: [*m.values()],
    "items": lambda n, m: [*m.items()],
    "empty": lambda n, m: n.ModuleDict(),
    "pairs": lambda n, m: n.ModuleDict([["x", n.Tanh()]]),
    "add_module": lambda n, m: m.add_module("q", n.Tanh()),
}


@pytest.mark.parametrize("name", DICT_OPERATIONS)
def test_a_module_dict_changes_as_torchs_does(torch, name):
    shown = []
    for n in (nn, torch.nn):
        model = heads(n)
        result = DICT_OPERATIONS[name](n, model)
        shown.append((repr(model), repr(result), [*model], len(model), [*model.state_dict()]))
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "call, kind",
    [
        (lambda n, m: m["z"], KeyError),
        (lambda n, m: m.pop("z"), KeyError),
        (lambda n, m: delete(m, "z"), KeyError),
        (lambda n, m: put(m, "a.b", n.Tanh()), KeyError),
        (lambda n, m: put(m, "", n.Tanh()), KeyError),
        (lambda n, m: put(m, "keys", n.Tanh()), KeyError),
        (lambda n, m: put(m, "training", n.Tanh()), KeyError),
        (lambda n, m: put(m, 3, n.Tanh()), TypeError),
        (lambda n, m: put(m, "c", 5), TypeError),
        (lambda n, m: m.update(5), TypeError),
        (lambda n, m: m.update([("a", n.Tanh(), 1)]), ValueError),
        (lambda n, m: m(5), NotImplementedError),
    ],
)
def test_a_module_dict_refuses_what_torchs_refuses(torch, call, kind):
    for n in (nn, torch.nn):
        with pytest.raises(kind):
            call(n, heads(n))


# ---- what is particular ----


def test_a_list_is_printed_with_equal_neighbours_counted(torch):
    def build(n):
        inner = [n.Sequential(n.Linear(3, 3), n.ReLU()) for _ in range(3)]
        return n.Sequential(
            n.ModuleList([*inner, n.ReLU(), n.ReLU(), n.Linear(3, 1), n.ReLU()]),
            n.ModuleList([n.ModuleList([n.Tanh()] * 2)] * 2),
            n.ModuleList(),
        )

    assert repr(build(nn)) == repr(build(torch.nn)) and "3 x Sequential" in repr(build(nn))


def test_a_layer_in_two_places_is_printed_in_both(torch):
    def build(n):
        layer = n.Linear(2, 2)
        return n.Sequential(layer, n.ReLU(), layer)

    assert repr(build(nn)) == repr(build(torch.nn))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_containers_can_be_copied(copied):
    model = nn.Sequential(OrderedDict(a=nn.ModuleList([nn.Linear(2, 2)]), b=heads(nn)))
    twin = copied(model)
    assert repr(twin) == repr(model) and [*twin.state_dict()] == [*model.state_dict()]
    assert twin.a is not model.a and twin.b["a"] is twin[1].a


def test_a_container_may_have_parameters_of_its_own():
    class Gated(nn.Sequential):
        def __init__(self, *modules):
            super().__init__(*modules)
            self.gate = nn.Parameter([0.5])
            self.register_buffer("calls", Tensor([0.0]))

        def forward(self, x):
            return super().forward(x) * self.gate

    model = Gated(nn.Linear(2, 2), nn.Tanh())
    assert [*model.state_dict()] == ["0.weight", "0.bias", "gate", "calls"]
    assert model(ones(1, 2)).shape == (1, 2) and model.get_buffer("calls") is model.calls


def test_a_sequential_of_functions_and_shared_layers_computes_in_order():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, lambda x: x + 1, layer)
    x = ones(3, 2)
    assert np.array_equal(model(x).data.numpy(), layer(layer(x) + 1).data.numpy())


# ---- a Linear, and the activation behind it ----


def recorded(y):
    "The names of the rules behind `y`, the last first, along first arguments."
    names = []
    while y._order >= 0:
        names.append(y._rule.__name__)
        y = y._args[0]
    return names


class Bent(nn.ReLU):
    def forward(self, x):
        return x * 2


BENDS = [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Tanh()]


@pytest.mark.parametrize("bend", BENDS, ids=repr)
def test_an_activation_behind_a_linear_is_done_in_one_operation(bend):
    x = Tensor(np.random.default_rng(0).normal(size=(4, 3)), dtype="float32")
    model = nn.Sequential(nn.Linear(3, 5), bend, nn.Linear(5, 2, bias=False), bend)
    apart = x
    for module in model:
        apart = module(apart)
    joined = model(x)
    assert recorded(joined) == ["linear", "linear"] and len(recorded(apart)) == 4
    np.testing.assert_allclose(joined.detach(), apart.detach(), rtol=1e-5, atol=1e-6)
    gradients = []
    for y in (joined, apart):
        y.backward(np.arange(8.0).reshape(4, 2))
        gradients.append([p.grad.numpy().copy() for p in model.parameters()])
        model.zero_grad()
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_is_joined_where_somebody_would_notice():
    x = Tensor(np.ones((4, 3)), dtype="float32")
    linear, relu = nn.Linear(3, 5), nn.ReLU()
    assert recorded(nn.Sequential(linear, relu)(x)) == ["linear"]
    seen = []
    for watched in (linear, relu):
        handle = watched.register_forward_hook(lambda module, args, y: seen.append((module, y)))
        assert len(recorded(nn.Sequential(linear, relu)(x))) > 1
        handle.remove()
    assert [module for module, _ in seen] == [linear, relu]
    assert seen[0][1].min().item() < 0 <= seen[1][1].min().item()
    linear, relu = nn.Linear(3, 5), nn.ReLU()
    assert recorded(nn.Sequential(linear, Bent())(x)) == ["multiply", "linear"]
    assert recorded(nn.Sequential(linear, nn.GELU("tanh"))(x)) == ["gelu", "linear"]
    assert recorded(nn.Sequential(linear, nn.Identity(), relu)(x)) == ["relu", "linear"]
    assert recorded(nn.Sequential(linear, lambda y: y * 2)(x)) == ["multiply", "linear"]
    assert (
        recorded(nn.Sequential(linear, linear_like := nn.Linear(5, 5), relu)(x)) == ["linear"] * 2
    )
    linear_like.forward = lambda y: -y
    assert recorded(nn.Sequential(linear, linear_like, relu)(x)) == ["relu", "negate", "linear"]
    relu.forward = lambda y: -y
    assert recorded(nn.Sequential(linear, relu)(x)) == ["negate", "linear"]


def test_an_error_names_the_linear_that_was_joined():
    model = nn.Sequential(nn.ReLU(), nn.Linear(3, 5), nn.ReLU())
    with pytest.raises(
        RuntimeError, match=r"'1'.*expects 3 features|Linear.*1.*expects 3 features"
    ):
        model(Tensor(np.ones((4, 4)), dtype="float32"))
    with pytest.raises(ValueError, match="activation is one of"):
        nn.Linear(3, 5)(Tensor(np.ones((4, 3)), dtype="float32"), "rleu")
