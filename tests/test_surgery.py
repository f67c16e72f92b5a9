"Surgery: every place, every mode, every optimizer; the defects of others, each once."

import copy
import pickle
import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

from minima import nn, optim
from minima.algorithms import NoEffectWarning, replace
from minima.autograd import Tensor

Pair = namedtuple("Pair", "first second")


class Owner(nn.Module):
    "Holds things in whatever ways Python knows."

    def __init__(self, **things):
        vars(self).update(things)

    def forward(self, x):
        return x


def identity(old):
    return nn.Identity()


def params(optimizer):
    return [group["params"] for group in optimizer.param_groups]


def same(tensors, others):
    return len(tensors) == len(others) and all(a is b for a, b in zip(tensors, others))


# ---- where ----


@pytest.mark.parametrize(
    "hold",
    [
        lambda m: Owner(layer=m),
        lambda m: Owner(layers=[1, [m, "x"]]),
        lambda m: Owner(layers=(m, (2, m))),
        lambda m: Owner(layers={"a": {3: m}}),
        lambda m: Owner(layers=OrderedDict(a=(m,))),
        lambda m: Owner(pair=Pair(m, 3)),
        lambda m: nn.Sequential(nn.ReLU(), m, abs),
        lambda m: nn.Sequential({"a": m}),
        lambda m: nn.ModuleList([m]),
        lambda m: nn.ModuleDict({"a": m}),
        lambda m: nn.Residual(m),
        lambda m: [nn.ReLU(), m],
        lambda m: (m,),
        lambda m: m,
    ],
)
def test_a_module_is_replaced_wherever_it_lies(hold):
    old, new = nn.Dropout(0.3), nn.Identity()
    model = hold(old)
    was = [path for path, _ in nn.module.walk(model, once=False)]
    model = replace(model, nn.Dropout, lambda found: new if found is old else None)
    places = [*nn.module.walk(model, once=False)]
    assert any(thing is new for _, thing in places)
    assert not any(thing is old for _, thing in places)
    assert [path for path, _ in places] == was


def test_collections_keep_their_kind_and_what_is_unchanged_its_identity():
    kept = (1, nn.ReLU())
    model = Owner(
        plain=(nn.Dropout(),),
        pair=Pair(nn.Dropout(), 2),
        kept=kept,
        order=OrderedDict(b=nn.Dropout(), a=1),
    )
    replace(model, nn.Dropout, identity)
    assert type(model.pair) is Pair and type(model.pair.first) is nn.Identity
    assert type(model.plain) is tuple
    assert model.kept is kept and type(model.order) is OrderedDict and [*model.order] == ["b", "a"]


def test_the_root_is_replaced_and_the_new_one_returned():
    old = nn.Dropout(0.2).eval()
    new = replace(old, nn.Dropout, identity)
    assert type(new) is nn.Identity and not new.training


def test_a_shared_layer_gets_one_replacement_in_all_places():
    shared, calls = nn.Dropout(), []
    model = nn.Sequential(shared, nn.Sequential(shared), Owner(items=(shared,)))

    def make(old):
        calls.append(old)
        return nn.Identity()

    replace(model, nn.Dropout, make)
    assert calls == [shared]
    assert model[0] is model[1][0] is model[2].items[0] and type(model[0]) is nn.Identity


def test_a_replacement_may_contain_what_it_replaces_and_other_matches():
    inner = nn.Sequential(nn.ReLU())
    model = nn.Sequential(inner, nn.ReLU())
    replace(model, (nn.Sequential, nn.ReLU), lambda old: None if old is model else Owner(held=old))
    assert type(model[0]) is Owner and model[0].held is inner
    assert type(inner[0]) is Owner and type(inner[0].held) is nn.ReLU
    assert type(model[1].held) is nn.ReLU


def test_cycles_and_deep_nests_end():
    model = Owner(child=Owner(drop=nn.Dropout()))
    model.child.parent = model
    replace(model, nn.Dropout, identity)
    assert type(model.child.drop) is nn.Identity and model.child.parent is model
    deep = nn.Dropout()
    for _ in range(3000):
        deep = Owner(inner=deep)
    replace(deep, nn.Dropout, identity)
    assert not any(isinstance(m, nn.Dropout) for m in deep.modules())


def test_two_modules_can_change_places():
    a, b = nn.ReLU(), nn.Tanh()
    model = nn.Sequential(a, b)
    replace(model, (nn.ReLU, nn.Tanh), lambda old: b if old is a else a)
    assert [*model] == [b, a]


def test_match_is_a_class_classes_or_a_function_of_path_and_module():
    def kinds(match):
        model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Dropout()))
        replace(model, match, identity)
        return [
            type(m).__name__ for m in (model[0], *(model[1] if len(model.modules()) > 3 else ()))
        ]

    assert kinds(nn.Tanh) == ["ReLU", "Identity", "Dropout"]
    assert kinds((nn.Tanh, nn.ReLU)) == ["Identity", "Identity", "Dropout"]
    assert kinds(lambda path, m: path == "1.1") == ["ReLU", "Tanh", "Identity"]
    for wrong in ("Dropout", (nn.Tanh, "x"), (), None, nn.Tanh()):
        if not callable(wrong):
            with pytest.raises(TypeError, match="match must be a class"):
                replace(nn.Sequential(nn.Tanh()), wrong, identity)


# ---- what is said, and what stays whole ----


@pytest.mark.parametrize(
    "match, make, words",
    [
        (nn.Dropout, identity, "there is no Dropout, so the model is unchanged"),
        ((nn.Dropout, nn.Tanh), identity, "there is no module that matches"),
        (nn.Linear, lambda old: None, "stay as they are"),
        (nn.Linear, lambda old: old, "stay as they are"),
    ],
)
def test_no_effect_is_a_warning(match, make, words):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.warns(NoEffectWarning, match=words) as caught:
        assert replace(model, match, make) is model
    assert caught[0].filename == __file__


def test_an_effect_is_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(nn.Sequential(nn.ReLU()), nn.ReLU, identity)


@pytest.mark.parametrize("result", [3, nn.ReLU, abs])
def test_an_error_in_make_changes_nothing(result):
    first, second = nn.Dropout(), nn.Dropout()
    model = nn.Sequential(first, nn.Sequential(second))
    with pytest.raises(TypeError, match=r"make must return a module, or None; of Dropout '1\.0'"):
        replace(model, nn.Dropout, lambda old: nn.ReLU() if old is first else result)
    assert model[0] is first and model[1][0] is second


# ---- what is taken over ----


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_the_old_module(training):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    model.train(training)
    model[1][1].training = not training  # frozen by itself
    replace(model, nn.Linear, lambda old: nn.Sequential(nn.Dropout(), old, model[1][1]))
    assert model[0].training is model[0][0].training is model[0][1].training is training
    assert model[1][1].training is not training


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_the_dtype_is_that_of_the_old_module_or_of_the_model(dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2)).to(dtype=dtype)
    model[0].weight.data = model[0].weight.data.to(dtype="float32")
    replace(model, lambda path, m: path in ("1", "2"), lambda old: nn.BatchNorm1d(2))
    replace(model, nn.Linear, lambda old: nn.Sequential(old, nn.Linear(2, 2)))
    assert model[1].weight.dtype == "float32"  # the model's first
    assert {t.dtype.name for t in model[2].parameters()} == {dtype}
    assert model[2].running_mean.dtype == dtype and model[2].num_batches_tracked.dtype == "int64"
    assert model[0][0].bias.dtype == dtype and model[0][1].bias.dtype == "float32"


def test_hooks_move_with_their_handles():
    model, calls = nn.Sequential(nn.ReLU()), []
    handle = model[0].register_forward_hook(lambda m, args, out: calls.append(type(m).__name__))

    def make(old):
        new = nn.Tanh()
        new.register_forward_hook(lambda *_: calls.append("own"))
        return new

    replace(model, nn.ReLU, make)
    model(Tensor([1.0]))
    assert calls == ["own", "Tanh"]
    handle.remove()
    model(Tensor([1.0]))
    assert calls == ["own", "Tanh", "own"]


def test_hooks_stay_on_a_module_that_lives_on():
    model, calls = nn.Sequential(nn.ReLU()), []
    model[0].register_forward_pre_hook(lambda m, args: calls.append(type(m).__name__))
    replace(model, nn.ReLU, lambda old: nn.Sequential(old, nn.Tanh()))
    model(Tensor([1.0]))
    assert calls == ["ReLU"] and model[0]._hooks is None


def test_the_changed_model_can_be_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    model.register_forward_pre_hook(print)
    replace(model, nn.Dropout, identity)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin[1]) is nn.Identity


# ---- optimizers ----


def trained(*groups):
    "A model of three layers, and an Adam that has made a step with it."
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 1))
    picked = [{"params": model[i].parameters(), "lr": 0.1 * (i + 1)} for i in groups]
    optimizer = optim.Adam(picked or model.parameters())
    model(Tensor(np.ones((4, 2)), dtype="float32")).sum().backward()
    optimizer.step()
    return model, optimizer


def swap(model, optimizers, i=1, make=lambda old: nn.Linear(3, 2)):
    return replace(model, lambda path, m: path == str(i), make, optimizers)


def test_an_optimizer_has_the_parameters_of_the_new_model_in_order():
    model, optimizer = trained()
    before, lists = model.parameters(), params(optimizer)
    states = [optimizer.state[p] for p in before]
    swap(model, optimizer)
    assert same(params(optimizer)[0], model.parameters()) and params(optimizer)[0] is lists[0]
    assert not {id(p) for p in before[2:4]} & {id(p) for p in optimizer.state}
    for i in (0, 1, 4, 5):
        assert optimizer.state[before[i]] is states[i]
    model(Tensor(np.ones((4, 2)), dtype="float32")).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 6 and optimizer.state[model[1].bias]["step"] == 1
    optimizer.load_state_dict(optimizer.state_dict())


def test_new_parameters_come_into_the_group_of_those_that_they_replace():
    model, optimizer = trained(2, 1, 0)
    swap(model, [optimizer])
    assert all(same(params(optimizer)[2 - i], model[i].parameters()) for i in range(3))


def test_without_a_place_of_their_own_they_come_into_the_first_group():
    model, optimizer = trained(0, 2)
    swap(model, optimizer)  # the layer in the middle was in no group
    assert same(params(optimizer)[0], model[0].parameters() + model[1].parameters())
    assert same(params(optimizer)[1], model[2].parameters())


def test_each_of_several_optimizers_cares_for_its_own():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    first, second = (optim.SGD(layer.parameters(), lr=0.1) for layer in model)
    other = nn.Linear(1, 1)  # a parameter of no business of the model
    first.add_param_group({"params": other.parameters()})
    swap(model, (first, second))
    assert same(params(first)[0], model[0].parameters())
    assert same(params(first)[1], other.parameters())
    assert same(params(second)[0], model[1].parameters())


def test_parameters_that_carry_over_stay_where_they_are():
    model, optimizer = trained()
    before = model.parameters()
    states = dict(optimizer.state)

    def make(old):
        new = nn.Linear(3, 2, bias=False)
        new.weight = old.weight
        return new

    swap(model, optimizer, make=make)
    assert same(params(optimizer)[0], before[:3] + before[4:])
    assert all(optimizer.state[p] is states[p] for p in params(optimizer)[0])
    assert len(optimizer.state) == 5


def test_a_tied_parameter_is_gone_only_when_all_its_places_are():
    model, optimizer = trained()
    model[2].tied = model[1].weight
    tied = model[1].weight
    swap(model, optimizer)
    assert sum(p is tied for p in params(optimizer)[0]) == 1 and tied in optimizer.state


def test_a_parameter_that_is_held_already_is_not_added_twice():
    model, optimizer = trained()
    swap(model, optimizer, 2, lambda old: nn.Sequential(model[1], nn.Linear(2, 1)))
    found = params(optimizer)[0]
    assert len(found) == len({id(p) for p in found}) == 6
    new = nn.Linear(3, 2)
    optimizer.add_param_group({"params": new.parameters()})
    swap(model, optimizer, 1, lambda old: new)
    assert sum(p is new.weight for group in params(optimizer) for p in group) == 1


def test_a_parameter_that_was_in_no_optimizer_stays_out_if_it_carries_over():
    model, optimizer = trained(0, 2)
    before = model.parameters()
    swap(model, optimizer, 1, lambda old: nn.Sequential(old))
    assert same(params(optimizer)[0], before[:2]) and same(params(optimizer)[1], before[4:])


def test_integers_give_no_dtype():
    drop = nn.GyroDropout(10)
    model = replace(nn.Sequential(drop), nn.GyroDropout, lambda old: nn.BatchNorm1d(2))
    assert model[0].weight.dtype == "float32"


def test_only_modules_are_asked():
    asked = []
    model = nn.Sequential(nn.BatchNorm1d(2))
    replace(model, lambda path, m: asked.append(m) or path == "0", identity)
    assert len(asked) == 2 and all(isinstance(m, nn.Module) for m in asked)
    with pytest.raises(TypeError, match="of Identity it made 3"):
        replace(nn.Identity(), nn.Identity, lambda old: 3)
