"Out to other libraries and back: shared memory, copies, pickles."

import copy
import pickle
from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from types import MappingProxyType

import numpy as np
import pytest

import minima as mi
from minima import nn
from minima.autograd import checkpoint
from minima.tensors import map_nest, map_tensors, tensors_in


def test_numpy_and_a_tensor_share_memory_both_ways():
    numbers = np.arange(6.0).reshape(2, 3)
    t = mi.from_dlpack(numbers)
    t[0, 0] = 50.0
    numbers[1, 2] = 70.0
    assert numbers[0, 0] == 50.0 and t[1, 2].item() == 70.0
    np.from_dlpack(t)
    assert t.numpy() is t.array and np.shares_memory(np.asarray(t), numbers)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
def test_torch_and_a_tensor_share_memory_both_ways(torch, dtype):
    theirs = torch.zeros(2, 3, dtype=getattr(torch, dtype))
    ours = mi.from_dlpack(theirs)
    theirs[0, 1] = 1
    assert ours[0, 1].item() == 1 and ours.shape == (2, 3) and ours.dtype == dtype
    back = torch.from_dlpack(ours)
    ours[1, 2] = 1
    assert back[1, 2] == 1 and theirs[1, 2] == 1


def test_a_strided_array_keeps_its_strides_in_dlpack(torch):
    theirs = torch.arange(12.0).reshape(3, 4).T[::2]
    assert mi.from_dlpack(theirs).tolist() == theirs.tolist()


def test_what_lies_on_a_device_without_a_backend_is_refused():
    class Elsewhere:
        def __dlpack_device__(self):
            return 8, 0

    with pytest.raises(RuntimeError, match="unknown device 'dlpack8'"):
        mi.from_dlpack(Elsewhere())


COPIES = [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]


@pytest.mark.parametrize("again", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [mi.Tensor, nn.Parameter, nn.Buffer])
def test_a_leaf_is_copied_with_all_that_it_holds(again, kind):
    t = kind(mi.Tensor(np.arange(4.0).reshape(2, 2).T))
    t.grad = mi.Tensor(np.ones((2, 2)))
    other = again(t)
    assert type(other) is kind and other.requires_grad == t.requires_grad and other.is_leaf
    assert other.tolist() == t.tolist() and other.grad.tolist() == t.grad.tolist()
    t.array[...] = 9.0
    t.grad.array[...] = 9.0
    assert other.array.max() == 3.0 and other.grad.array.max() == 1.0
    assert (other * 2).tolist() == [[0.0, 4.0], [2.0, 6.0]]


@pytest.mark.parametrize("again", COPIES, ids=["deepcopy", "pickle"])
def test_what_a_graph_made_is_not_copied(again):
    with pytest.raises(RuntimeError, match="only leaves.*detach"):
        again(mi.Tensor([1.0], requires_grad=True) * 2)


@pytest.mark.parametrize("again", COPIES, ids=["deepcopy", "pickle"])
def test_a_copied_model_trains_on_and_leaves_the_first_alone(again):
    mi.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    first[2].weight = nn.Parameter(first[0].bias.data.T)
    second = again(first)
    before = first[0].weight.tolist()
    optimizer = mi.optim.SGD(second.parameters(), lr=0.1)
    second(mi.Tensor(np.ones((2, 3), "float32"))).sum().backward()
    optimizer.step()
    assert first[0].weight.tolist() == before != second[0].weight.tolist()
    assert all(p.grad is None for p in first.parameters())


# ---- NumPy's functions ----

NUMPYS = {
    "array_equal": lambda t: np.array_equal(t, t),
    "array_equiv": lambda t: np.array_equiv([[1.0, 2.0, 4.0]], t),
    "sum": lambda t: np.sum(t, axis=1),
    "std": np.std,
    "max": lambda t: np.max(t, keepdims=True),
    "concatenate": lambda t: np.concatenate([t, np.ones((1, 3), "float32"), t]),
    "where": lambda t: np.where(t > np.float32(1), t, 0),
    "transpose": np.transpose,
    "einsum": lambda t: np.einsum("ij,kj->ik", t, t),
    "norm": lambda t: np.linalg.norm(t, axis=0),
    "a keyword": lambda t: np.clip(t, 0, a_max=t / 2),
}


@pytest.mark.parametrize("name", NUMPYS)
def test_numpys_functions_take_the_numbers_or_refuse(name):
    numbers, f = np.float32([[1.0, 2.0, 4.0]] * 2), NUMPYS[name]
    t = mi.Tensor(numbers)
    got, expected = f(t), f(numbers)
    assert (
        type(got) is type(expected) and got.dtype == expected.dtype if name[:5] != "array" else got
    )
    np.testing.assert_array_equal(got, expected)
    for leaf in (mi.Tensor(numbers, requires_grad=True), nn.Parameter(numbers)):
        for graph in (leaf, leaf * 2):
            with pytest.raises(RuntimeError, match="Tensor that requires grad.*detach"):
                f(graph)


def test_numpy_is_told_facts_in_a_graph_too():
    t = nn.Parameter(np.ones((2, 3), "float32")) * 2
    assert (np.shape(t), np.ndim(t), np.size(t)) == ((2, 3), 2, 6)
    assert np.result_type(t, "float64") == "float64"


def test_numpy_writes_where_it_is_told_to():
    out = mi.Tensor(np.zeros(3))
    np.sum(np.ones((2, 3)), axis=0, out=out)
    assert out.tolist() == [2.0, 2.0, 2.0]


# ---- nests ----

Pair = namedtuple("Pair", "x y")
T, U = mi.Tensor([1.0, 2.0]), mi.Tensor([3])


class Named(dict):
    "A dict with more to it."


@pytest.mark.parametrize("nest, found", [
    (T, [T]), ((T, U), [T, U]), ([U, (T, [U])], [U, T, U]), (Pair(T, [U]), [T, U]),
    ({"b": T, "a": {3: (U,)}}, [T, U]), (OrderedDict(b=T, a=U), [T, U]),
    (defaultdict(list, a=[T]), [T]), (Named(a=T), [T]), (UserDict({"a": T}), [T]),
    (UserList([T, U]), [T, U]), (MappingProxyType({"a": T}), [T]), (deque([T], 3), [T]),
    ("text", []), (b"bytes", []), (None, []), (3, []), ({1, 2}, []), ((), []), ([], []), ({}, []),
    ((None, "a", [True, T], np.ones(2)), [T]), (range(2), []), (nn.ModuleList([nn.ReLU()]), []),
])  # fmt: skip
def test_nests_are_walked_and_keep_their_make(nest, found):
    assert [*map(id, tensors_in(nest))] == [*map(id, found)]
    same, other = map_tensors(lambda t: t, nest), map_tensors(lambda t: t * 2, nest)
    assert type(other) is (list if isinstance(nest, range) else type(nest))
    assert [t.tolist() for t in tensors_in(other)] == [(t * 2).tolist() for t in found]
    assert [*map(id, tensors_in(nest))] == [*map(id, found)], "it has changed the nest"
    assert repr(same) == repr(nest) or isinstance(nest, range)


def test_leaves_are_whatever_is_no_nest():
    leaves, array = [], np.ones((2, 2))
    nest = {"a": [array, "text", b"b"], "b": (None, T, 3), "c": Pair({4}, 0.5)}
    map_nest(leaves.append, nest)
    assert leaves[:3] == [array, "text", b"b"] and leaves[4:] == [T, 3, {4}, 0.5]
    assert map_nest(lambda leaf: 1, nest) == {"a": [1] * 3, "b": (1, 1, 1), "c": Pair(1, 1)}
    default = map_tensors(lambda t: t, defaultdict(int, a=T))
    assert default["missing"] == 0 and map_tensors(lambda t: t, deque([T], 3)).maxlen == 3


@pytest.mark.parametrize(
    "make", [Pair, lambda a, b: OrderedDict(b=b, a=[a]), lambda a, b: (a, "t", b)]
)
def test_a_checkpoint_returns_the_nest_that_its_function_returns(make):
    x = mi.Tensor([1.0, 2.0], requires_grad=True)
    out = checkpoint(lambda x: make(x * 2, x.exp()))(x)
    assert type(out) is type(make(x, x)) and repr(make(1, 2)).count("OrderedDict") == (
        repr(out).count("OrderedDict")
    )
    sum(t.sum() for t in tensors_in(out)).backward()
    np.testing.assert_allclose(x.grad, 2 + np.exp([1.0, 2.0]), rtol=1e-6)


# ---- shown ----

LOUD = dict(
    threshold=10**6, precision=2, edgeitems=1, linewidth=30, suppress=True, sign="+",
    nanstr="nothing", infstr="much", floatmode="fixed", formatter={"all": lambda x: "?"},
)  # fmt: skip


@pytest.mark.parametrize(
    "data, text",
    [
        ([1.0, -2.5], "[ 1.  -2.5]"),
        ([1 / 3, np.nan, np.inf], "[0.333333      nan      inf]"),
        ([1e-8, 1.0], "[1.e-08 1.e+00]"),
        (np.arange(1000), None),
        (np.arange(1001), "[   0    1    2 ...  998  999 1000]"),
        (np.arange(2000).reshape(2, -1),
         "[[   0    1    2 ...  997  998  999]\n [1000 1001 1002 ... 1997 1998 1999]]"),
        (np.zeros((0, 3), "float32"), "[], shape=(0, 3)"),
        ([True, False], "[ True False]"),
    ],
)  # fmt: skip
def test_repr_is_short_and_does_not_depend_on_what_numpy_prints(data, text):
    t = mi.Tensor(data)
    with np.printoptions(**LOUD):
        loud = repr(t)
    with np.printoptions(legacy="1.13"):
        legacy = repr(t)
    assert loud == legacy == repr(t)
    if text is None:
        assert "..." not in loud and " 500 " in loud.replace("\n", " ")
    else:
        assert loud == f"minima.Tensor(\n{text})"


def test_html_is_small_and_says_shape_dtype_device_and_gradient():
    t = mi.Tensor(np.random.default_rng(0).normal(size=(500, 400)), requires_grad=True)
    page = t._repr_html_()
    assert len(page) < 1000 and "..." in page and "<script" not in page
    assert "500 × 400 · float64 · cpu · requires_grad" in page
    assert "a number · float32 · cpu</small><pre>2.5</pre>" in mi.Tensor(2.5)._repr_html_()


def test_html_escapes_whatever_a_dtype_or_device_is_called(monkeypatch):
    monkeypatch.setattr(mi.Tensor, "device", "<b>&")
    assert "&lt;b&gt;&amp;" in mi.Tensor([1.0])._repr_html_()
