"What a model is: the walk, its views, hooks, saving, printing, and where errors arose."

import copy
import gc
import importlib.util
import pickle
import weakref

import numpy as np
import pytest

from minima import nn
from minima.autograd import Tensor
from minima.nn.module import walk
from minima.optim import SGD


def ones(*shape, dtype="float32"):
    return Tensor(np.ones(shape), dtype=dtype)


class Scale(nn.Module):
    "A parameter, a buffer and no call of super().__init__()."

    def __init__(self, value=2.0):
        self.factor = nn.Parameter([value])
        self.calls = nn.Buffer(0)

    def forward(self, x):
        return x * self.factor


class Tree(nn.Module):
    "Modules in an attribute, a list, a tuple and a dict, some of them nested."

    def __init__(self):
        self.first = Scale()
        self.listed = [Scale(), nn.Linear(2, 3)]
        self.pair = (Scale(), {"deep": [Scale()]})
        self.by_name = {"a": nn.Sequential(nn.Linear(3, 2), nn.ReLU())}
        self.name, self.nothing, self.numbers = "a tree", None, [1, 2.0, "three"]

    def forward(self, x):
        return self.by_name["a"](self.listed[1](self.listed[0](self.first(x))))


# ---- the walk ----


def test_the_walk_finds_everything_in_order_of_definition():
    tree = Tree()
    found = {path: type(thing).__name__ for path, thing in walk(tree)}
    scale = {"": "Scale", ".factor": "Parameter", ".calls": "Buffer"}
    linear = {"": "Linear", ".weight": "Parameter", ".bias": "Parameter"}
    expected = {"": "Tree"}
    for path, inside in [
        ("first", scale),
        ("listed.0", scale),
        ("listed.1", linear),
        ("pair.0", scale),
        ("pair.1.deep.0", scale),
        ("by_name.a", {"": "Sequential"}),
        ("by_name.a.0", linear),
        ("by_name.a.1", {"": "ReLU"}),
    ]:
        expected |= {path + name: kind for name, kind in inside.items()}
    assert [*found.items()] == [*expected.items()]


def test_unpack_params_and_child_modules_take_any_nest():
    a, b, layer = nn.Parameter([1.0]), nn.Parameter([2.0]), nn.Linear(2, 2)
    nest = [a, {"x": (b, a), "y": [layer]}, Tensor([3.0]), nn.Buffer([4.0]), 5, None]
    assert nn._unpack_params(nest) == [a, b, layer.weight, layer.bias]
    assert nn._unpack_params(a) == [a] and nn._unpack_params("text") == []
    assert nn._child_modules(nest) == [layer] == nn._child_modules(layer)
    assert Tree()._children()[0].factor.item() == 2.0 and len(Tree()._children()) == 8


def test_children_are_direct_and_modules_are_all():
    tree = Tree()
    names = ["first", "listed.0", "listed.1", "pair.0", "pair.1.deep.0", "by_name.a"]
    assert [name for name, _ in tree.named_children()] == names
    assert tree.children() == [child for _, child in tree.named_children()]
    assert [path for path, _ in tree.named_modules()] == ["", *names, "by_name.a.0", "by_name.a.1"]
    assert len(tree.parameters()) == 8 and len(tree.buffers()) == 4
    assert dict(tree.named_buffers())["pair.1.deep.0.calls"].item() == 0


def test_a_shared_weight_or_layer_is_listed_once():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    assert [path for path, _ in tied.named_parameters()] == ["0.weight", "0.bias", "1.bias"]
    layer = nn.Linear(2, 2)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(twice.parameters()) == 2 and len(twice.children()) == 2
    assert [*twice.state_dict()] == ["0.weight", "0.bias"]


def test_children_may_point_back_to_their_parents():
    tree = Tree()
    tree.first.parent = tree
    tree.listed[0].siblings = tree.listed
    tree.numbers.append(tree.numbers)
    assert len(tree.parameters()) == 8 and len(tree._children()) == 8
    assert [*tree.state_dict()][:2] == ["first.factor", "first.calls"]


def test_children_that_point_back_to_their_parents_can_be_switched_and_printed():
    tree = Tree()
    tree.first.parent = tree
    assert not any(module.training for module in nn._child_modules(tree.eval()))
    assert repr(tree).count("Scale") == 4
    assert tree.apply(lambda module: None) is tree


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_nested_sequentials_count_each_parameter_once(depth):
    model = nn.Linear(2, 2)
    for _ in range(depth):
        model = nn.Sequential(model)
    assert len(model.parameters()) == 2 and len({id(p) for p in model.parameters()}) == 2
    assert len(model._children()) == depth


def test_a_step_of_an_optimizer_is_taken_once():
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 1, dtype="float64")))
    before = model[0][0].weight.item()
    model(ones(1, 1, dtype="float64")).sum().backward()
    SGD(model.parameters(), lr=0.1).step()
    assert model[0][0].weight.item() == pytest.approx(before - 0.1, abs=1e-12)


def test_an_attribute_set_before_or_without_super_init_is_found():
    class Before(nn.Module):
        def __init__(self):
            self.early = nn.Linear(1, 2)
            super().__init__()
            self.late = nn.Linear(2, 1)

        def forward(self, x):
            return self.late(self.early(x))

    model = Before()
    assert [*model.state_dict()] == ["early.weight", "early.bias", "late.weight", "late.bias"]
    assert model.training and model(ones(3, 1)).shape == (3, 1)
    assert repr(Scale()) == "Scale()" and Scale().eval()(Tensor([3.0])).item() == 6.0


def test_layers_of_an_old_definition_of_the_classes_are_still_found():
    "In a notebook a cell that defines a class is run again; isinstance then fails."
    spec = importlib.util.find_spec("minima.nn.module")
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    assert not issubclass(nn.Linear, again.Module)

    class Mine(again.Module):
        def __init__(self):
            self.old = nn.Linear(2, 3)
            self.new = again.Parameter([1.0])
            self.both = again.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(3, 1)))

        def forward(self, x):
            return self.both(self.old(x)) * self.new

    model = Mine()
    assert len(model.parameters()) == 5 and "(old): Linear(in_features=2" in repr(model)
    assert not model.eval().both[0].training
    assert [*model.state_dict()][0] == "old.weight" and model(ones(4, 2)).shape == (4, 1)
    assert len(nn.Sequential(model).parameters()) == 5


# ---- parameters and buffers ----


def test_parameters_want_gradients_and_buffers_do_not():
    p, b = nn.Parameter([1.0, 2.0]), nn.Buffer([1.0, 2.0])
    assert p.requires_grad and p.is_leaf and not b.requires_grad
    assert not nn.Parameter([1.0], requires_grad=False).requires_grad
    assert nn.Parameter(np.ones(2), dtype="float32").dtype == "float32"
    assert type(p * 2) is type(p.reshape((2, 1))) is Tensor
    assert isinstance(p, Tensor) and isinstance(b, Tensor) and not isinstance(b, nn.Parameter)


def test_a_parameter_owns_its_numbers():
    "Whoever hands it an array can go on using the array."
    numbers = np.ones(3)
    p, b = nn.Parameter(numbers), nn.Buffer(numbers)
    numbers[0] = 7.0
    assert p.tolist() == b.tolist() == [1.0, 1.0, 1.0]


# ---- calling ----


def test_calling_a_module_keeps_neither_input_nor_output():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    before = [set(vars(m)) for m in model._children()]
    gc.disable()
    try:
        x = Tensor(np.ones((1, 2)), dtype="float32", requires_grad=True)
        y = model(x)
        ghosts = [weakref.ref(x), weakref.ref(y)]
        del x, y
        assert [ghost() for ghost in ghosts] == [None, None]
    finally:
        gc.enable()
    assert [set(vars(m)) for m in model._children()] == before


def test_a_parameter_that_is_passed_as_input_is_not_taken_for_the_models_own():
    model, stranger = nn.ReLU(), nn.Parameter([1.0])
    model(stranger)
    assert model.parameters() == []


def test_a_module_without_forward_says_so():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="^Empty has no forward"):
        Empty()(1)
    with pytest.raises(NotImplementedError, match="^Empty '0' has no forward"):
        nn.Sequential(Empty())(1)


# ---- hooks ----


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
    class Power(nn.Module):
        def forward(self, x, exponent=1):
            return x**exponent

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


# ---- training and evaluation ----


def test_train_and_eval_reach_everything_and_can_be_chained():
    tree = Tree()
    assert tree.eval() is tree and not any(m.training for m in nn._child_modules(tree))
    assert tree.train(True) is tree and all(m.training for m in nn._child_modules(tree))
    assert tree.train(False) is tree and not any(m.training for m in nn._child_modules(tree))
    assert tree.train() is tree and all(m.training for m in nn._child_modules(tree))


def test_a_module_may_override_train():
    class Frozen(nn.Module):
        "Its own part stays in evaluation mode, whatever its parent does."

        def __init__(self):
            self.inner = nn.Dropout()

        def train(self, mode=True):
            return super().train(False)

    model = nn.Sequential(nn.Dropout(), nn.Sequential(Frozen())).train()
    assert model[0].training and not model[1][0].training and not model[1][0].inner.training


# ---- what is done to all parameters ----


def test_zero_grad_requires_grad_and_apply():
    model, seen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), []
    model(ones(3, 2)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.requires_grad_(False) is model and not model(ones(3, 2)).requires_grad
    assert all(p.requires_grad for p in model.requires_grad_().parameters())
    assert model.apply(lambda m: seen.append(type(m).__name__)) is model
    assert seen == ["Linear", "Linear", "Sequential"]


def test_to_changes_floating_dtypes_only_and_keeps_the_objects():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = model.parameters() + model.buffers()
    model(ones(3, 2) * Tensor([[1.0], [2.0], [4.0]])).sum().backward()
    assert model.to("float64") is model
    assert all(a is b for a, b in zip(before, model.parameters() + model.buffers()))
    dtypes = {path: str(t.dtype) for path, t in model.state_dict().items()}
    assert dtypes.pop("1.num_batches_tracked") == "int64" and {*dtypes.values()} == {"float64"}
    assert {str(p.grad.dtype) for p in model.parameters()} == {"float64"}
    assert model(ones(3, 2, dtype="float64")).dtype == "float64"
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


# ---- saving ----


def model_to_save(seed=0):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ModuleList([nn.Linear(4, 2)]))
    rng = np.random.default_rng(seed)
    for t in model.parameters() + model.buffers():
        t.data = np.asarray(rng.uniform(1, 9, size=t.shape)).astype(t.dtype)
    return model


KEYS = "0.weight 0.bias 1.weight 1.bias 1.running_mean 1.running_var 1.num_batches_tracked"
KEYS = [*KEYS.split(), "2.0.weight", "2.0.bias"]


def test_state_dict_names_are_torchs(torch):
    tnn = torch.nn
    theirs = tnn.Sequential(
        tnn.Linear(3, 4), tnn.BatchNorm1d(4), tnn.ModuleList([tnn.Linear(4, 2)])
    )
    assert [*model_to_save().state_dict()] == KEYS == [*theirs.state_dict()]


def test_a_state_dict_goes_round_and_keeps_the_objects():
    source, target = model_to_save(0), model_to_save(1)
    objects = target.parameters() + target.buffers()
    state = {path: t.numpy().copy() for path, t in source.state_dict().items()}
    assert target.load_state_dict(state) == ([], [])
    assert all(a is b for a, b in zip(objects, target.parameters() + target.buffers()))
    for path, t in target.state_dict().items():
        assert np.array_equal(t.numpy(), state[path]) and t.dtype == state[path].dtype
    state["0.weight"][:] = 0  # the model has its own copy
    assert not np.array_equal(target[0].weight.data.numpy(), state["0.weight"])


def test_a_state_dict_shares_memory_and_wants_no_gradient():
    model = model_to_save()
    state = model.state_dict()
    state["0.bias"].array[...] = 9.0
    assert model[0].bias.tolist() == [[9.0] * 4]
    assert not any(t.requires_grad for t in state.values())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("1.running_mean"), ["missing", "1.running_mean", "9 keys", "8"]),
        (lambda s: s.update(extra=np.ones(2)), ["unexpected", "extra"]),
        (lambda s: s.update({"0.bias": np.ones((1, 5))}), ["0.bias", "(1, 4)", "(1, 5)"]),
        (lambda s: s.update({"0.bias": np.ones(4)}), ["0.bias", "(1, 4)", "(4,)"]),
        (lambda s: s.update({"0.weight": np.ones((3, 1))}), ["0.weight", "(3, 4)", "(3, 1)"]),
        (
            lambda s: (s.pop("0.bias"), s.update(more=1)),
            ["missing", "0.bias", "unexpected", "more"],
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_and_nothing_is_changed(change, words):
    model, state = model_to_save(0), model_to_save(1).state_dict()
    before = {path: t.numpy().copy() for path, t in model.state_dict().items()}
    change(state)
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(state)
    assert all(word in str(caught.value) for word in ["Sequential", *words]), caught.value
    for path, t in model.state_dict().items():
        assert np.array_equal(t.numpy(), before[path])


def test_without_strict_what_fits_is_loaded_and_the_rest_is_told():
    model, state = model_to_save(0), model_to_save(1).state_dict()
    del state["0.bias"]
    state["extra"] = np.ones(2)
    assert model.load_state_dict(state, strict=False) == (["0.bias"], ["extra"])
    assert np.array_equal(model[0].weight.data.numpy(), state["0.weight"].numpy())


def tied():
    model = model_to_save()
    model.append(nn.Linear(4, 2))
    model[3].weight = model[2][0].weight
    return model.eval()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_has_the_numbers_the_ties_and_the_mode_but_not_the_memory(copied):
    model = tied()
    twin = copied(model)
    assert [*twin.state_dict()] == [*model.state_dict()] and repr(twin) == repr(model)
    for a, b in zip(model.state_dict().values(), twin.state_dict().values()):
        assert np.array_equal(a.numpy(), b.numpy()) and not np.shares_memory(a.array, b.array)
    assert twin[3].weight is twin[2][0].weight and twin[3].weight is not model[3].weight
    assert [type(p) for p in twin.parameters()] == [nn.Parameter] * 7
    assert all(p.requires_grad for p in twin.parameters()) and not twin[1].training
    x = ones(2, 3)
    assert np.array_equal(twin[1](twin[0](x)).data.numpy(), model[1](model[0](x)).data.numpy())


def test_a_model_can_be_copied_after_many_steps_of_training():
    "Running statistics that carry a graph made this recurse until it failed."
    norm = nn.BatchNorm1d(2)
    x = Tensor(np.arange(6.0).reshape(3, 2), dtype="float32")
    for _ in range(1200):
        norm(x)
    twin = copy.deepcopy(norm)
    norm.eval()(x).sum().backward()
    assert twin.num_batches_tracked.item() == 1200


# ---- printing ----


def test_a_model_is_printed_exactly_as_in_torch(torch):
    def build(nn):
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(12, 8),
            nn.Sequential(nn.LayerNorm(8), nn.ReLU(), nn.Sequential(nn.Dropout(0.1))),
            nn.Sequential(),
            nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Tanh()]),
            nn.LayerNorm((2, 4), eps=1e-6, elementwise_affine=False),
            nn.BatchNorm1d(8, momentum=None),
            nn.BatchNorm2d(3, affine=False, track_running_stats=False),
            nn.Identity(3, unused=True),
            nn.GELU(approximate="tanh"),
            nn.Sigmoid(),
            nn.Softmax(dim=-1),
            nn.Flatten(0, 1),
        )

    ours, theirs = repr(build(nn)), repr(build(torch.nn))
    assert ours == theirs


def test_children_in_lists_and_dicts_are_printed():
    text = repr(Tree())
    assert "(listed.0): Scale()" in text and "(pair.1.deep.0): Scale()" in text
    assert "(by_name.a): Sequential(\n    (0): Linear(in_features=3" in text


def test_extra_repr_stands_with_the_children():
    class Both(nn.Module):
        def __init__(self):
            self.inner = nn.ReLU()

        def extra_repr(self):
            return "size=3"

    assert repr(Both()) == "Both(\n  size=3\n  (inner): ReLU()\n)"


# ---- where an error arose ----


class Deep(nn.Module):
    def __init__(self, inner):
        self.net = nn.Sequential(nn.ReLU(), nn.Identity(), inner)

    def forward(self, x):
        return self.net(x)


def test_an_error_names_the_path_of_the_layer():
    with pytest.raises(RuntimeError, match=r"^Linear 'net\.2' expects 784 features.*\(2, 3\)"):
        Deep(nn.Linear(784, 10))(ones(2, 3))
    with pytest.raises(RuntimeError, match=r"^Linear 'net\.2\.fn\.0' expects 4"):
        Deep(nn.Residual(nn.Sequential(nn.Linear(4, 3))))(ones(2, 3))
    with pytest.raises(RuntimeError, match=r"^Linear 'by_name\.a\.0' expects 3"):
        tree = Tree()
        tree.listed[1] = nn.Identity()
        tree(ones(2, 2))
    with pytest.raises(RuntimeError, match=r"^Linear expects 784"):
        nn.Linear(784, 10)(ones(2, 3))


def test_an_error_of_an_operator_names_the_path_too():
    class Bad(nn.Module):
        def forward(self, x):
            return x + Tensor([1.0, 2.0])

    with pytest.raises(RuntimeError, match=r"add\(\(2, 3\), \(2,\)\).*\(in Bad 'net\.2'\)$"):
        Deep(Bad())(ones(2, 3))


def test_an_error_keeps_its_type_and_one_that_is_no_text_is_left_alone():
    class Picky(nn.Module):
        def __init__(self, error):
            self.error = error

        def forward(self, x):
            raise self.error

    with pytest.raises(IndexError, match=r"^no such row \(in Picky 'net\.2'\)$"):
        Deep(Picky(IndexError("no such row")))(1)
    with pytest.raises(OSError) as caught:
        Deep(Picky(OSError(2, "gone")))(1)
    assert caught.value.args == (2, "gone")
    with pytest.raises(KeyboardInterrupt):
        Deep(Picky(KeyboardInterrupt()))(1)


def test_an_error_in_a_hook_is_located_as_well():
    model = Deep(nn.ReLU())

    def hook(module, args, output):
        raise ValueError("looked and disliked")

    model.net[2].register_forward_hook(hook)
    with pytest.raises(ValueError, match=r"looked and disliked \(in ReLU 'net\.2'\)"):
        model(ones(2, 3))


def test_a_model_works_after_an_error():
    model = Deep(nn.Linear(3, 1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="^Linear 'net.2' expects 3 .*(2, 4)"):
            model(ones(2, 4))
    assert model(ones(2, 3)).shape == (2, 1)


# ---- containers ----


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


def test_a_model_is_not_turned_into_integers():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with pytest.raises(TypeError, match="floating.*int64"):
        model.to("int64")
    assert {p.dtype.name for p in model.parameters()} == {"float32"}


def test_what_merely_has_a_role_is_no_part_of_a_model():
    class Actor:
        role = "Hamlet"

    model = nn.Sequential(nn.Linear(2, 3))
    model.cast = [Actor(), Actor()]
    assert len(list(nn.module.walk(model))) == 4
