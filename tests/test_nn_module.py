"What a model is: the walk, its views, saving, containers, printing, and where errors arose."

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
            self.both = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Linear(3, 1)))

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


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets_or_fills(torch, set_to_none):
    for n, x in ((nn, ones(3, 2)), (torch.nn, torch.ones(3, 2))):
        model = n.LayerNorm(2)
        model.zero_grad(set_to_none=set_to_none)
        assert model.bias.grad is None
        model(x).sum().backward()
        model.zero_grad(set_to_none=set_to_none)
        assert model.bias.grad is None if set_to_none else model.bias.grad.tolist() == [0.0, 0.0]
    model = nn.Linear(2, 1)
    model(ones(3, 2)).sum().backward(create_graph=True)
    model.zero_grad(set_to_none=False)
    assert not model.bias.grad.requires_grad


def test_half_float_double_and_to_a_tensor(torch):
    for n, tensor in ((nn, Tensor), (torch.nn, torch.tensor)):
        model = n.BatchNorm1d(2)
        for change, name in [
            (model.half, "float16"),
            (model.double, "float64"),
            (model.float, "float32"),
            (lambda m=model, t=tensor: m.to(t(1.0, dtype=m.weight.double().dtype)), "float64")
            if n is torch.nn
            else (lambda m=model: m.to(Tensor(1.0, dtype="float64")), "float64"),
        ]:
            assert change() is model
            dtypes = {str(t.dtype).split(".")[-1] for t in [*model.parameters(), *model.buffers()]}
            assert dtypes == {name, "int64"}


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
        (
            lambda s: s.pop("1.running_mean"),
            ['Missing key(s) in state_dict: "1.running_mean"', "9 keys", "8"],
        ),
        (lambda s: s.update(extra=np.ones(2)), ['Unexpected key(s) in state_dict: "extra"']),
        (lambda s: s.update({"0.bias": np.ones((1, 5))}), ["0.bias", "(1, 4)", "(1, 5)"]),
        (lambda s: s.update({"0.bias": np.ones(4)}), ["0.bias", "(1, 4)", "(4,)"]),
        (lambda s: s.update({"0.weight": np.ones((3, 1))}), ["0.weight", "(3, 4)", "(3, 1)"]),
        (
            lambda s: (s.pop("0.bias"), s.update(more=1)),
            ['Missing key(s) in state_dict: "0.bias"', "Unexpected", '"more"'],
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


def test_what_load_state_dict_returns_is_named_and_says_all_is_well(torch):
    for n in (nn, torch.nn):
        model = n.Sequential(n.Linear(2, 2, bias=False))
        found = model.load_state_dict(model.state_dict())
        assert repr(found) == str(found) == "<All keys matched successfully>"
        assert (found.missing_keys, found.unexpected_keys) == ([], []) == found
        found = model.load_state_dict({"extra": model[0].weight}, strict=False)
        assert repr(found).endswith(
            "IncompatibleKeys(missing_keys=['0.weight'], unexpected_keys=['extra'])"
        )


def small(n):
    return n.Sequential(n.BatchNorm1d(3), n.LayerNorm(3), n.ModuleDict({"a": n.LayerNorm(2)}))


CHANGES = {
    "missing": lambda s: s.pop("1.bias"),
    "missing several": lambda s: (s.pop("2.a.weight"), s.pop("0.running_mean"), s.pop("0.bias")),
    "unexpected": lambda s: s.update({"z": s["1.bias"], "1.more": s["1.bias"]}),
    "both": lambda s: s.update({"1.wight": s.pop("1.weight")}),
    "size": lambda s: s.update({"1.bias": s["2.a.bias"], "2.a.weight": s["0.running_var"]}),
    "all": lambda s: s.update({"x": s.pop("0.weight"), "1.bias": s["2.a.bias"]}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("strict", [True, False])
def test_what_does_not_fit_is_told_in_torchs_words(torch, change, strict):
    told = []
    for n in (nn, torch.nn):
        model = small(n)
        state = dict(model.state_dict())
        CHANGES[change](state)
        try:
            told.append(tuple(model.load_state_dict(state, strict=strict)))
        except RuntimeError as error:
            lines = [line.strip(" .") for line in str(error).splitlines()]
            kept = [line for line in lines if "The model has" not in line]
            told.append([line.replace("torch.Size([", "(").replace("])", ",)") for line in kept])
    assert told[0] == told[1]


def test_numbers_take_the_models_dtype_and_may_come_as_anything(torch):
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    state = {
        "0.weight": torch.tensor([[1.5], [2.5]], dtype=torch.float64),
        "0.bias": [[3]],
        "1.weight": np.array([4], dtype="int8"),
        "1.num_batches_tracked": 5.0,
    }
    model.load_state_dict(state, strict=False)
    dtypes = [str(t.dtype) for t in model.state_dict().values()]
    assert dtypes == ["float32"] * 6 + ["int64"]
    assert model[0].weight.tolist() == [[1.5], [2.5]] and model[0].bias.tolist() == [[3.0]]
    assert model[1].weight.tolist() == [4.0] and model[1].num_batches_tracked.item() == 5


@pytest.mark.parametrize("value", ["text", None, [[1.0], [2.0, 3.0]], object()])
def test_what_is_no_tensor_is_refused_by_name(value):
    model = nn.Linear(2, 1)
    before = model.weight.tolist()
    with pytest.raises(RuntimeError, match='While copying the parameter named "bias"'):
        model.load_state_dict({"weight": np.zeros((2, 1)), "bias": value})
    assert model.weight.tolist() == before


def test_loading_into_itself_in_another_order_does_not_mix_up_what_is_read_and_written():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = model[0].weight.tolist(), model[1].weight.tolist()
    state = model.state_dict()
    state["0.weight"], state["1.weight"] = state["1.weight"], state["0.weight"]
    model.load_state_dict(state)
    assert (model[0].weight.tolist(), model[1].weight.tolist()) == (second, first)


def test_assign_takes_the_arrays_and_keeps_the_objects():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    model[0].bias.requires_grad_(False)
    model(ones(3, 2) * Tensor([[1.0], [2.0], [3.0]])).sum().backward()
    held = model.parameters()
    state = {path: t.to("float64") for path, t in model.state_dict().items()}
    assert model.load_state_dict(state, assign=True) == ([], [])
    for path, t in model.state_dict().items():
        assert t.array is state[path].array and t.dtype == "float64"
    assert all(p is q for p, q in zip(held, model.parameters()))
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match='"0.weight": int64'):
        model.load_state_dict({"0.weight": np.ones((2, 1), int)}, strict=False, assign=True)
    assert model[0].weight.dtype == "float64"


def test_loading_between_a_forward_and_its_backward_is_noticed(torch):
    for n, x, words in (
        (nn, Tensor([[1.0, 2.0]], requires_grad=True), "load_state_dict"),
        (torch.nn, torch.ones(1, 2, requires_grad=True), "inplace"),
    ):
        model = n.Linear(2, 1)
        y = model(x).sum()
        model.load_state_dict(model.state_dict())
        with pytest.raises(RuntimeError, match=words):
            y.backward()


def test_a_tied_parameter_is_loaded_by_any_of_its_names():
    def build():
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        model[1].weight = model[0].weight
        return model

    model, value = build(), np.arange(4.0).reshape(2, 2)
    for state in ({"0.weight": value}, {"1.weight": value}, {"0.weight": value, "1.weight": value}):
        model[0].weight.data = np.zeros((2, 2), "float32")
        assert model.load_state_dict(state) == ([], [])
        assert model[1].weight is model[0].weight and model[0].weight.tolist() == value.tolist()
    with pytest.raises(RuntimeError, match="size mismatch for 1.weight"):
        model.load_state_dict({"0.weight": value, "1.weight": np.ones(4)})
    model.load_state_dict({"1.weight": value}, assign=True)
    assert model[1].weight is model[0].weight


def test_prefix_and_keep_vars_of_a_state_dict(torch):
    for n in (nn, torch.nn):
        model = n.LayerNorm(3)
        state = model.state_dict(prefix="a.", keep_vars=True)
        assert [*state] == ["a.weight", "a.bias"] and state["a.bias"] is model.bias
        assert not model.state_dict()["bias"].requires_grad


# ---- registering, and finding by path ----


def with_registers(n, tensor):
    class Registers(n.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", tensor([1.0, 2.0]), persistent=False)
            self.register_buffer("steps", tensor([0.0]))
            self.register_buffer("nothing", None)
            self.register_parameter("gain", n.Parameter(tensor([3.0])))
            self.register_parameter("bias", None)
            self.add_module("inner", n.Sequential(n.LayerNorm(2)))
            self.register_module("last", n.Tanh())
            self.add_module("empty", None)

    return Registers()


def test_what_is_registered_is_found_and_saved_as_in_torch(torch):
    told = []
    for n, tensor in ((nn, Tensor), (torch.nn, torch.tensor)):
        model = with_registers(n, tensor)
        told.append([
            repr(model).replace("  (empty): None\n", ""),
            sorted(model.state_dict()),
            [path for path, _ in model.named_buffers()],
            [path for path, _ in model.named_buffers(prefix="p", recurse=False)],
            [path for path, _ in model.named_parameters()],
            [path for path, _ in model.named_parameters("p", False)],
            [path for path, _ in model.named_modules(prefix="root")],
            [tuple(p.shape) for p in model.parameters(recurse=False)],
            len([*model.buffers(recurse=False)]),
            [type(m).__name__ for m in model.modules()],
            model.get_parameter("inner.0.bias") is model.inner[0].bias,
            model.get_buffer("table") is model.table,
            model.get_submodule("inner.0") is model.inner[0],
            model.get_submodule("") is model,
            (model.nothing, model.bias, model.empty),
            model.double().table.dtype == model.gain.dtype,
        ])  # fmt: skip
        model.load_state_dict(model.state_dict())
        model.register_buffer("table", tensor([5.0]))  # again, and to be saved this time
        told[-1].append(sorted(model.state_dict()))
        model.register_buffer("nothing", tensor([5.0]))
        told[-1].append(sorted(model.state_dict()))
    assert told[0] == told[1]


BAD_REGISTRATIONS = {
    "dot": (lambda n, m, t: m.register_buffer("a.b", t([1.0])), KeyError, 'contain "."'),
    "empty": (lambda n, m, t: m.register_buffer("", t([1.0])), KeyError, "empty string"),
    "number": (lambda n, m, t: m.register_buffer(3, t([1.0])), TypeError, "should be a string"),
    "no tensor": (lambda n, m, t: m.register_buffer("a", [1.0]), TypeError, "cannot assign"),
    "method": (lambda n, m, t: m.register_buffer("forward", t([1.0])), KeyError, "already exists"),
    "other kind": (lambda n, m, t: m.register_buffer("gain", t([1.0])), KeyError, "already exists"),
    "plain": (lambda n, m, t: m.register_parameter("a", t([1.0])), TypeError, "cannot assign"),
    "p dot": (lambda n, m, t: m.register_parameter("a.b", None), KeyError, 'contain "."'),
    "p taken": (lambda n, m, t: m.register_parameter("last", None), KeyError, "already exists"),
    "no module": (lambda n, m, t: m.add_module("a", t([1.0])), TypeError, "."),
    "m dot": (lambda n, m, t: m.add_module("a.b", n.Tanh()), KeyError, 'contain "."'),
    "m taken": (lambda n, m, t: m.add_module("gain", n.Tanh()), KeyError, "already exists"),
    "m attribute": (lambda n, m, t: m.add_module("training", n.Tanh()), KeyError, "already exists"),
    "get nothing": (lambda n, m, t: m.get_submodule("inner.7"), AttributeError, "no attribute `7`"),
    "get no module": (lambda n, m, t: m.get_submodule("gain"), AttributeError, "`gain` is not a"),
    "get no parameter": (lambda n, m, t: m.get_parameter("steps"), AttributeError, "is not a"),
    "get no buffer": (lambda n, m, t: m.get_buffer("gain"), AttributeError, "is not a buffer"),
    "get through": (lambda n, m, t: m.get_parameter("x.y"), AttributeError, "no attribute `x`"),
}


@pytest.mark.parametrize("name", BAD_REGISTRATIONS)
def test_what_torch_refuses_to_register_or_find_is_refused(torch, name):
    call, kind, words = BAD_REGISTRATIONS[name]
    for n, tensor in ((nn, Tensor), (torch.nn, torch.tensor)):
        with pytest.raises(kind, match=words):
            call(n, with_registers(n, tensor), tensor)


def test_paths_lead_through_lists_and_dicts():
    tree = Tree()
    assert tree.get_submodule("pair.1.deep.0") is tree.pair[1]["deep"][0]
    assert tree.get_parameter("by_name.a.0.weight") is tree.by_name["a"][0].weight
    for path, thing in walk(tree):
        assert tree._at(path, thing.role) is thing
    with pytest.raises(AttributeError, match="`listed` is not a module"):
        tree.get_submodule("listed")


def test_a_buffer_shares_memory_and_its_persistence_is_copied():
    numbers, model = Tensor([1.0, 2.0]), nn.Module()
    model.register_buffer("a", numbers, persistent=False)
    model.b = nn.Buffer([3.0], persistent=False)
    numbers[0] = 7.0
    assert model.a.tolist() == [7.0, 2.0] and isinstance(model.a, nn.Buffer)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not twin.state_dict() and len(twin.buffers()) == 2 and twin.a.tolist() == [7.0, 2.0]
        assert type(twin.b) is nn.Buffer and not np.shares_memory(twin.a.array, numbers.array)


def test_what_is_not_saved_does_not_go_to_torch_either(torch):
    from minima.serialization import load_torch_state, torch_state

    ours, theirs = with_registers(nn, Tensor), with_registers(torch.nn, torch.tensor)
    assert torch_state(ours).keys() == theirs.state_dict().keys()
    assert load_torch_state(ours, theirs.state_dict()) == ([], [])


def test_all_paths_of_what_is_shared(torch):
    told = []
    for n in (nn, torch.nn):
        layer = n.LayerNorm(2)
        model = n.Sequential(layer, n.ModuleList([layer]), n.LayerNorm(2))
        model[2].bias = layer.bias
        told.append([
            [path for path, _ in model.named_parameters(remove_duplicate=False)],
            [path for path, _ in model.named_parameters()],
            [path for path, _ in model.named_modules(remove_duplicate=False)],
            [path for path, _ in model.named_modules()],
        ])  # fmt: skip
    assert told[0] == told[1]


def test_all_paths_end_where_a_thing_would_lie_in_itself():
    tree = Tree()
    tree.first.parent = tree
    tree.numbers.append(tree.numbers)
    once = [path for path, _ in walk(tree)]
    assert {*once} == {path for path, _ in walk(tree, once=False)}


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
            nn.ReLU(inplace=True),
            nn.SiLU(),
            nn.SiLU(inplace=True),
            nn.LeakyReLU(0.2),
            nn.LeakyReLU(0.2, True),
            nn.Softplus(2, threshold=3.0),
            nn.LogSoftmax(dim=0),
            nn.Embedding(3, 4, padding_idx=-1, max_norm=2),
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
