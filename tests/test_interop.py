"Out to other libraries and back: shared memory, copies, pickles."

import copy
import pickle

import numpy as np
import pytest

import minima as mi
from minima import nn


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
