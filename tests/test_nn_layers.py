"Layers, norms and dropout, one row each beside PyTorch; then what each must not do again."

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest

from minima import init, nn
from minima.autograd import ShapeError, Tensor, grad
from minima.backend import set_default_dtype
from minima.nn import functional as F
from minima.optim import SGD
from minima.random import Generator, fork_rng, keep_mask, manual_seed
from minima.testing import gradcheck, vs_torch

RTOL = {"float32": 1e-5, "float64": 1e-12}
FLOATS = list(RTOL)


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def leaf(*shape, seed=0, dtype="float64"):
    return Tensor(normal(*shape, seed=seed, dtype=dtype), requires_grad=True)


LAYOUTS = {
    "as it is": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1] if a.ndim else a,
}


# ---- one row per layer ----


@dataclass
class Row:
    "A layer, as a function of minima.nn or torch.nn; torch's if it is another one; input shapes."

    make: object
    shapes: list
    theirs: object = None

    def pair(self, torch):
        manual_seed(1)
        ours = self.make(nn)
        rng = np.random.default_rng(2)
        for p in ours.parameters():  # nothing may be 0 or 1 by default
            p.data = rng.normal(size=p.shape).astype(p.dtype)
        return ours, (self.theirs or self.make)(torch.nn)


def function(f):
    "`f(torch_nn_module, x)` as a torch module."

    def make(tnn):
        class Function(tnn.Module):
            def forward(self, x):
                return f(tnn, x)

        return Function()

    return make


ROWS = {
    "Linear": Row(
        lambda n: n.Linear(4, 3), [(4,), (2, 4), (1, 4), (2, 5, 4), (0, 4), (2, 1, 3, 4)]
    ),
    "Linear 1": Row(lambda n: n.Linear(1, 1), [(3, 1), (1, 1), (1,)]),
    "Linear no bias": Row(lambda n: n.Linear(3, 5, bias=False), [(2, 3), (3,), (2, 2, 3)]),
    "Flatten": Row(lambda n: n.Flatten(), [(2, 3, 4), (2, 3), (0, 3, 4), (3, 0), (2, 1, 1, 5)]),
    "Flatten all": Row(lambda n: n.Flatten(0), [(2, 3, 4), (3,), (0, 2)]),
    "Flatten some": Row(lambda n: n.Flatten(1, 2), [(2, 3, 4), (2, 3, 4, 5), (0, 3, 4)]),
    "Flatten from the end": Row(lambda n: n.Flatten(-2), [(2, 3, 4), (3, 4)]),
    "ReLU": Row(lambda n: n.ReLU(), [(5,), (2, 3), (), (0, 3), (2, 3, 4)]),
    "Sigmoid": Row(lambda n: n.Sigmoid(), [(5,), (2, 3), (), (0, 3)]),
    "Tanh": Row(lambda n: n.Tanh(), [(5,), (2, 3), (), (0, 3)]),
    "GELU": Row(lambda n: n.GELU(), [(5,), (2, 3), (), (0, 3)]),
    "GELU tanh": Row(lambda n: n.GELU(approximate="tanh"), [(5,), (2, 3), (), (0, 3)]),
    "LeakyReLU": Row(lambda n: n.LeakyReLU(), [(5,), (2, 3), (), (0, 3)]),
    "LeakyReLU steep": Row(lambda n: n.LeakyReLU(0.3, inplace=False), [(2, 3)]),
    "SiLU": Row(lambda n: n.SiLU(), [(5,), (2, 3), (), (0, 3)]),
    "Softplus": Row(lambda n: n.Softplus(), [(5,), (2, 3), (), (0, 3)]),
    "Softplus sharp": Row(lambda n: n.Softplus(beta=3, threshold=2.0), [(40,), (2, 3)]),
    "LogSoftmax": Row(lambda n: n.LogSoftmax(dim=1), [(2, 3), (2, 3, 4), (1, 1), (0, 3)]),
    "LogSoftmax last": Row(lambda n: n.LogSoftmax(-1), [(5,), (2, 3)]),
    "Softmax": Row(lambda n: n.Softmax(dim=1), [(2, 3), (2, 3, 4), (1, 1), (0, 3), (2, 3, 4, 2)]),
    "Softmax first": Row(lambda n: n.Softmax(dim=0), [(5,), (2, 3), (2, 3, 4)]),
    "Softmax last": Row(lambda n: n.Softmax(dim=-1), [(5,), (2, 3), (2, 3, 4)]),
    "Identity": Row(lambda n: n.Identity(3, why="none"), [(2, 3), ()]),
    "Residual": Row(
        lambda n: n.Residual(nn.Tanh()),
        [(2, 3), (), (0, 3)],
        function(lambda tnn, x: x + tnn.Tanh()(x)),
    ),
    "Dropout 0": Row(lambda n: n.Dropout(0.0), [(2, 3), (), (0, 3)]),
    "Dropout 1": Row(lambda n: n.Dropout(1.0), [(2, 3), (), (0, 3)]),
    "LayerNorm": Row(lambda n: n.LayerNorm(4), [(2, 4), (4,), (2, 3, 4), (1, 4), (0, 4)]),
    "LayerNorm 2": Row(lambda n: n.LayerNorm((3, 4), eps=0.1), [(2, 3, 4), (3, 4), (5, 2, 3, 4)]),
    "LayerNorm list": Row(lambda n: n.LayerNorm([2, 3, 4]), [(2, 2, 3, 4)]),
    "LayerNorm plain": Row(lambda n: n.LayerNorm(4, elementwise_affine=False), [(2, 4), (2, 3, 4)]),
    "LayerNorm no bias": Row(lambda n: n.LayerNorm(4, bias=False), [(2, 4)]),
    "LayerNorm 1 feature": Row(lambda n: n.LayerNorm(1, eps=0.1), [(3, 1)]),
    "LayerNorm1d": Row(
        lambda n: n.LayerNorm1d(4, eps=1e-3),
        [(2, 4), (4,), (2, 3, 4), (0, 4)],
        lambda tnn: tnn.LayerNorm(4, eps=1e-3),
    ),
    "BatchNorm1d": Row(lambda n: n.BatchNorm1d(3), [(5, 3), (2, 3), (2, 3, 4), (1, 3, 4)]),
    "BatchNorm1d settings": Row(lambda n: n.BatchNorm1d(3, 0.1, 0.3), [(5, 3), (2, 3, 4)]),
    "BatchNorm1d average": Row(lambda n: n.BatchNorm1d(3, momentum=None), [(5, 3), (2, 3, 4)]),
    "BatchNorm1d plain": Row(lambda n: n.BatchNorm1d(3, affine=False), [(5, 3), (2, 3, 4)]),
    "BatchNorm1d no bias": Row(lambda n: n.BatchNorm1d(3, bias=False), [(5, 3), (2, 3, 4)]),
    "BatchNorm1d forgetful": Row(
        lambda n: n.BatchNorm1d(3, track_running_stats=False), [(5, 3), (2, 3, 4)]
    ),
    "BatchNorm1d 1 channel": Row(lambda n: n.BatchNorm1d(1), [(4, 1), (1, 1, 3)]),
    "BatchNorm2d": Row(lambda n: n.BatchNorm2d(3), [(2, 3, 4, 5), (1, 3, 2, 1), (4, 3, 1, 1)]),
    "BatchNorm2d plain": Row(
        lambda n: n.BatchNorm2d(2, affine=False, momentum=0.5), [(3, 2, 2, 2)]
    ),
}
CASES = [pytest.param(name, s, id=f"{name} {s}") for name, r in ROWS.items() for s in r.shapes]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name, shape", CASES)
def test_a_layer_is_torchs_in_value_gradients_and_statistics(torch, name, shape, training, dtype):
    ours, theirs = ROWS[name].pair(torch)
    if "BatchNorm" in name:  # statistics that are not the first ones
        for t in ours.buffers():
            t.data = np.random.default_rng(3).uniform(1, 3, size=t.shape).astype(t.dtype)
    for model in (ours, theirs):
        model.train(training)
    found = vs_torch(ours, theirs, [normal(*shape) * 2 + 1], dtype=dtype, verbose=False)
    gradients = [row for row in found if row.startswith("gradient")]
    assert len(gradients) == 1 + len(ours.parameters()) and "output" in found
    assert len(found) == len(gradients) + 1 + len(ours.buffers())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [name for name in ROWS if "BatchNorm" in name])
def test_running_statistics_are_torchs_after_five_batches_and_are_then_used(torch, name, dtype):
    shape = ROWS[name].shapes[0]
    ours, theirs = ROWS[name].pair(torch)
    ours.to(dtype)
    theirs = theirs.to(getattr(torch, dtype))
    rng = np.random.default_rng(4)
    for _ in range(5):
        x = rng.normal(3.0, 2.0, size=shape).astype(dtype)
        ours(Tensor(x))
        theirs(torch.tensor(x))
    assert [*dict(ours.named_buffers())] == [*dict(theirs.named_buffers())]
    for (path, t), buffer in zip(ours.named_buffers(), theirs.buffers()):
        assert str(buffer.dtype) == f"torch.{t.dtype}", path
        np.testing.assert_allclose(t.numpy(), buffer.numpy(), rtol=RTOL[dtype], err_msg=path)
    if ours.running_mean is not None:
        assert ours.num_batches_tracked.item() == 5
        assert np.allclose(ours.running_std.numpy() ** 2, ours.running_var.numpy())
    for model in (ours, theirs):
        model.eval()
    before = [t.numpy().copy() for t in ours.buffers()]
    vs_torch(ours, theirs, [x], dtype=dtype, verbose=False)
    assert all(np.array_equal(a, t.numpy()) for a, t in zip(before, ours.buffers()))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "as it is"])
@pytest.mark.parametrize("name", ROWS)
def test_a_layer_does_not_care_how_the_memory_lies(name, layout):
    layer, shape = ROWS[name].make(nn).to("float64"), ROWS[name].shapes[0]
    a = normal(*shape)
    g = normal(*layer(Tensor(a)).shape, seed=1)
    results = []
    for array in (a, LAYOUTS[layout](a)):
        x = Tensor(array, requires_grad=True)
        y = layer(x)
        gradients = grad(y, [x, *layer.parameters()], g)
        results.append([y.data.numpy(), *(t.numpy() for t in gradients)])
        assert np.array_equal(array, a)  # not written into
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


SMOOTH = [name for name in ROWS if not name.startswith(("Dropout", "LayerNorm 1 feature"))]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_to_second_order_are_what_differences_say(name, training):
    layer, shape = ROWS[name].make(nn).to("float64").train(training), ROWS[name].shapes[0]
    assert gradcheck(layer, [normal(*shape) * 2 + 1], params=layer.parameters(), order=2)


def test_the_dtype_that_goes_in_comes_out():
    for name, row in ROWS.items():
        for dtype in FLOATS:
            layer = row.make(nn).to(dtype)
            x = leaf(*row.shapes[0], dtype=dtype)
            y = layer(x)
            y.sum().backward()
            gradients = [x.grad, *(p.grad for p in layer.parameters())]
            assert {str(t.dtype) for t in [y, *gradients]} == {dtype}, name


def test_none_means_the_default_dtype_at_the_time_of_making():
    try:
        set_default_dtype("float64")
        made = [nn.Linear(2, 2), nn.LayerNorm(2), nn.LayerNorm1d(2), nn.BatchNorm1d(2)]
    finally:
        set_default_dtype("float32")
    assert {str(t.dtype) for m in made for t in [*m.parameters(), *m.buffers()]} == {
        "float64",
        "int64",
    }
    for make in (nn.Linear(2, 2, dtype="float64"), nn.BatchNorm2d(2, dtype="float64")):
        assert all(p.dtype == "float64" for p in make.parameters())
    assert nn.Linear(2, 2, device="cpu").weight.device == "cpu"


# ---- the functions are the layers ----


def test_functions_and_layers_compute_the_same():
    x, rng = leaf(4, 3), np.random.default_rng(1)
    linear, norm = nn.Linear(3, 2, dtype="float64"), nn.LayerNorm(3, dtype="float64")
    batch = nn.BatchNorm1d(3, dtype="float64").eval()
    batch.running_mean.data, batch.running_var.data = rng.normal(size=3), rng.uniform(1, 2, size=3)
    running = batch.running_mean, batch.running_var
    for layer, y in [
        (nn.ReLU(), F.relu(x)),
        (nn.Sigmoid(), F.sigmoid(x)),
        (nn.Tanh(), F.tanh(x)),
        (nn.GELU(), F.gelu(x)),
        (nn.GELU("tanh"), F.gelu(x, approximate="tanh")),
        (nn.LeakyReLU(), F.leaky_relu(x)),
        (nn.LeakyReLU(0.2), F.leaky_relu(x, 0.2)),
        (nn.SiLU(), F.silu(x)),
        (nn.Softplus(), F.softplus(x)),
        (nn.Softplus(2, 1), F.softplus(x, beta=2, threshold=1)),
        (nn.LogSoftmax(), F.log_softmax(x, dim=1)),
        (nn.Softmax(), F.softmax(x, dim=1)),
        (nn.Softmax(0), F.softmax(x, dim=0)),
        (nn.Flatten(0), F.flatten(x)),
        (linear, F.linear(x, linear.weight, linear.bias)),
        (norm, F.layer_norm(x, 3, norm.weight, norm.bias)),
        (batch, F.batch_norm(x, *running, batch.weight, batch.bias)),
        (nn.Dropout(0.5, Generator(3)), F.dropout(x, 0.5, generator=Generator(3))),
    ]:
        assert np.array_equal(layer(x).data.numpy(), y.data.numpy()), layer


def test_functions_have_torchs_names_and_defaults(torch):
    x, rng = normal(4, 3), np.random.default_rng(2)
    mean, var = rng.normal(size=3), rng.uniform(1, 2, size=3)
    T = torch.nn.functional
    for ours, theirs, inputs in [
        (F.softmax, lambda x: T.softmax(x, -1), [x]),
        (F.log_softmax, lambda x: T.log_softmax(x, -1), [x]),
        (F.leaky_relu, T.leaky_relu, [x]),
        (lambda x: F.leaky_relu(x, 0.2), lambda x: T.leaky_relu(x, 0.2), [x]),
        (F.silu, T.silu, [x]),
        (F.softplus, T.softplus, [x * 9]),
        (lambda x: F.softplus(x, 2, 1), lambda x: T.softplus(x, 2, 1), [x]),
        (
            lambda w: F.embedding(Tensor([[1, 3], [1, 0]]), w),
            lambda w: T.embedding(torch.tensor([[1, 3], [1, 0]]), w),
            [x],
        ),
        (lambda x: F.log_softmax(x, dim=0), lambda x: T.log_softmax(x, dim=0), [x]),
        (F.flatten, torch.flatten, [x]),
        (F.flatten, torch.flatten, [np.array(2.5)]),
        (F.linear, lambda x, w, b: T.linear(x, w.T, b), [x, normal(3, 2), normal(2)]),
        (F.linear, lambda x, w: T.linear(x, w.T), [x, normal(3, 2)]),
        (lambda x: F.layer_norm(x, (4, 3)), lambda x: T.layer_norm(x, (4, 3)), [x]),
        (lambda x: F.dropout(x, training=False), lambda x: T.dropout(x, training=False), [x]),
        (
            lambda x: F.batch_norm(x, Tensor(mean), Tensor(var)),
            lambda x: T.batch_norm(x, torch.tensor(mean), torch.tensor(var)),
            [x],
        ),
        (
            lambda x: F.batch_norm(x, None, None, training=True),
            lambda x: T.batch_norm(x, None, None, training=True),
            [x],
        ),
    ]:
        vs_torch(ours, theirs, inputs, verbose=False)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2), (2, 3, 2, 2)])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
def test_batch_norm_as_a_function_updates_what_it_is_given(torch, shape, momentum):
    x, mean, var = normal(*shape), normal(3), np.random.default_rng(1).uniform(1, 2, size=3)
    ours, theirs = [Tensor(a.copy()) for a in (mean, var)], [torch.tensor(a) for a in (mean, var)]
    y = F.batch_norm(Tensor(x), *ours, training=True, momentum=momentum)
    z = torch.nn.functional.batch_norm(torch.tensor(x), *theirs, training=True, momentum=momentum)
    np.testing.assert_allclose(y.numpy(), z.numpy(), rtol=1e-12, atol=1e-12)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12)
    F.batch_norm(Tensor(x), *ours)  # evaluation changes nothing
    np.testing.assert_allclose(ours[0].numpy(), theirs[0].numpy(), rtol=1e-12)


def test_one_hot_is_torchs(torch):
    for labels, classes in [([0, 2, 1], -1), ([[0, 1], [3, 3]], 5), (2, -1), ([], 3)]:
        labels = np.array(labels, dtype="int64")
        ours = F.one_hot(labels, classes)
        theirs = torch.nn.functional.one_hot(torch.tensor(labels), classes)
        assert np.array_equal(ours.numpy(), theirs.numpy()) and ours.dtype == "int64"


def test_softmax_converts_first_as_torchs_does(torch):
    x = normal(3, 4, dtype="float32")
    for ours, theirs in [(F.softmax, "softmax"), (F.log_softmax, "log_softmax")]:
        y = ours(Tensor(x), dim=0, dtype="float64")
        z = getattr(torch.nn.functional, theirs)(torch.tensor(x), 0, dtype=torch.float64)
        assert y.dtype == "float64"
        np.testing.assert_allclose(y.numpy(), z.numpy(), rtol=1e-12)
        assert ours([1, 2], dim=0, dtype="float64").dtype == "float64"


def test_what_comes_in_is_not_written_into_even_in_place():
    for layer in (nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True), nn.SiLU(inplace=True)):
        x = Tensor([-1.0, 2.0])
        layer(x)
        assert x.tolist() == [-1.0, 2.0]


# ---- embedding ----

EMBEDDINGS = {
    "plain": {},
    "padding": dict(padding_idx=2),
    "padding from the end": dict(padding_idx=-1),
    "padding first": dict(padding_idx=0),
    "short": dict(max_norm=1.0),
    "short and padding": dict(max_norm=0.5, padding_idx=3),
    "short by sums": dict(max_norm=1.0, norm_type=1.0),
    "short by the largest": dict(max_norm=0.5, norm_type=float("inf")),
    "short by cubes": dict(max_norm=0.5, norm_type=3.0),
}
INDICES = {
    "one": np.array(3),
    "row": np.array([4, 1, 4, 4, 2]),
    "table": np.array([[0, 1, 2], [2, 2, 4]]),
    "deep": np.arange(24).reshape(2, 3, 4) % 5,
    "none": np.zeros((0, 3), "int64"),
    "int32": np.array([[3, 1]], "int32"),
    "backwards": np.arange(5)[::-1],
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("settings", EMBEDDINGS)
def test_an_embedding_is_torchs(torch, settings, indices, dtype):
    settings, indices = EMBEDDINGS[settings], INDICES[indices]
    ours = nn.Embedding(5, 3, **settings, dtype=dtype)
    theirs = torch.nn.Embedding(5, 3, **settings, dtype=getattr(torch, dtype))
    assert repr(ours) == repr(theirs)
    weight = normal(5, 3, dtype=dtype)
    ours.load_state_dict({"weight": weight})
    theirs.load_state_dict({"weight": torch.tensor(weight)})
    y, z = ours(Tensor(indices)), theirs(torch.tensor(indices.copy()))
    g = normal(*y.shape, seed=1, dtype=dtype)
    y.backward(Tensor(g))
    z.backward(torch.tensor(g))
    for a, b in [(y.data, z.detach()), (ours.weight.grad, theirs.weight.grad)]:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=RTOL[dtype], atol=RTOL[dtype])
        assert a.dtype == dtype
    shortened = ours.weight.data.numpy(), theirs.weight.detach().numpy()
    np.testing.assert_allclose(*shortened, rtol=RTOL[dtype])  # in place, those that were used


def test_the_rows_of_an_embedding_begin_as_normal_numbers():
    manual_seed(0)
    weight = nn.Embedding(2000, 50, padding_idx=-3).weight.data.numpy()
    assert (weight[1997] == 0).all() and abs(weight.mean()) < 0.01 and abs(weight.std() - 1) < 0.01
    assert nn.Embedding(3, 2, dtype="float64", device="cpu").weight.dtype == "float64"


@pytest.mark.parametrize("settings", EMBEDDINGS)
def test_an_embedding_may_begin_with_a_table(torch, settings):
    settings, table = EMBEDDINGS[settings], normal(5, 3)
    ours = nn.Embedding.from_pretrained(Tensor(table), **settings)
    theirs = torch.nn.Embedding.from_pretrained(torch.tensor(table), **settings)
    assert repr(ours) == repr(theirs) and not ours.weight.requires_grad
    assert ours.weight.array is table and ours.weight.tolist() == theirs.weight.tolist()
    assert nn.Embedding.from_pretrained(table, freeze=False).weight.requires_grad
    with fork_rng() as generator:
        before = generator.get_state()
        nn.Embedding.from_pretrained(table)
        assert generator.get_state() == before
    for n, tensor in ((nn, Tensor), (torch.nn, torch.tensor)):
        with pytest.raises((RuntimeError, AssertionError), match="matrix|2-dimensional"):
            n.Embedding.from_pretrained(tensor([1.0, 2.0]))


@pytest.mark.parametrize("padding_idx", [None, 1])
def test_gradients_of_an_embedding_are_what_differences_say(padding_idx):
    def lookup(weight):
        y = F.embedding(Tensor([[1, 3, 1], [0, 1, 3]]), weight, padding_idx)
        return y * y

    if padding_idx is None:
        assert gradcheck(lookup, [normal(4, 2)], order=2)
    else:  # differences know nothing of padding
        (g,) = grad(lookup(weight := leaf(4, 2)).sum(), weight)
        assert (g.numpy()[1] == 0).all() and (g.numpy()[[0, 3]] != 0).all()


# ---- linear ----


def test_linear_begins_within_torchs_bound(torch):
    manual_seed(0)
    for n in (1, 4, 10_000):
        layer, bound = nn.Linear(n, 50), n**-0.5
        theirs = torch.nn.Linear(n, 50)
        for p in (layer.weight.data, layer.bias.data, theirs.weight.detach(), theirs.bias.detach()):
            largest = np.abs(np.asarray(p)).max()
            assert 0.85 * bound < largest <= bound
    wide = nn.Linear(300, 300).weight.data.numpy()
    assert abs(wide.mean()) < 0.001 and np.isclose(wide.var(), 1 / 900, rtol=0.02)


def test_the_older_initialisation_is_one_assignment_away():
    layer = nn.Linear(50, 40)
    layer.weight = nn.Parameter(init.kaiming_uniform(fan_in=50, fan_out=40))
    assert (6 / 50) ** 0.5 * 0.9 < np.abs(layer.weight.data.numpy()).max() <= (6 / 50) ** 0.5
    assert layer.parameters()[0] is layer.weight and layer(f32(2, 50)).shape == (2, 40)


def test_two_linears_are_not_alike_and_a_seed_repeats_them():
    manual_seed(5)
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    manual_seed(5)
    c = nn.Linear(3, 3)
    assert a.weight.tolist() == c.weight.tolist() != b.weight.tolist()
    assert a.bias.tolist() == c.bias.tolist() and a.bias.tolist()[0] != a.weight.tolist()[0]


def test_the_bias_of_a_linear_is_a_leaf_that_is_trained():
    layer = nn.Linear(3, 2)
    assert len(layer.parameters()) == 2 and layer.bias.is_leaf and layer.bias.shape == (1, 2)
    before = layer.bias.tolist()[0]
    layer(Tensor(np.ones((4, 3)), dtype="float32")).sum().backward()
    SGD(layer.parameters(), lr=0.5).step()
    assert np.allclose(layer.bias.data.numpy(), np.array([before]) - 0.5 * 4)


def test_a_bias_of_zero_is_still_a_bias():
    layer = nn.Linear(2, 1)
    layer.bias.data = np.zeros((1, 1), dtype="float32")
    assert "bias=True" in repr(layer)
    layer(Tensor(np.ones((3, 2)), dtype="float32")).sum().backward()
    assert layer.bias.grad.tolist() == [[3.0]]
    layer.bias = nn.Parameter(np.array(5.0), dtype="float32")  # no axis at all
    assert layer(Tensor(np.zeros((3, 2)), dtype="float32")).tolist() == [[5.0]] * 3


def test_linear_without_a_bias_has_none():
    layer = nn.Linear(2, 3, bias=False)
    assert (
        layer.bias is None and [*layer.state_dict()] == ["weight"] and "bias=False" in repr(layer)
    )


# ---- activations and softmax ----


def test_sigmoid_and_softmax_are_finite_far_out_and_so_are_their_gradients():
    for layer in (nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.Softmax(0)):
        for dtype in FLOATS:
            x = Tensor(np.array([-1e4, -1000.0, 0.0, 1000.0, 1e4]), dtype=dtype, requires_grad=True)
            with np.errstate(all="raise", under="ignore"):
                y = layer(x)
                (g,) = grad(y, x, normal(5))
            assert np.isfinite(y.data.numpy()).all() and np.isfinite(g.numpy()).all(), layer
    x = Tensor([-1000.0, 1000.0], requires_grad=True)
    assert grad(nn.Sigmoid()(x).sum(), x)[0].tolist() == [0.0, 0.0]


def test_softmax_goes_along_the_axis_that_was_asked_for():
    x = normal(2, 3, 4)
    for made, called, axis in [(1, None, 1), (0, None, 0), (-1, None, 2), (1, 0, 0), (1, -1, 2)]:
        y = nn.Softmax(dim=made)(Tensor(x), dim=called).numpy()
        expected = np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)
        np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert nn.Softmax()(Tensor(normal(2, 3))).sum(axis=1).tolist() == pytest.approx([1, 1])
    assert nn.Softmax(dim=0)(Tensor(normal(3))).shape == (3,)
    assert nn.Softmax()(Tensor([[1000.0, 0.0]])).tolist() == [[1.0, 0.0]]


# ---- normalisation ----


def test_layer_norm1d_takes_any_leading_axes_and_looks_at_the_last():
    layer = nn.LayerNorm1d(6)
    for shape in [(6,), (2, 6), (3, 2, 6), (2, 3, 2, 6)]:
        y = layer(Tensor(normal(*shape, dtype="float32"))).data.numpy()
        assert np.allclose(y.mean(axis=-1), 0, atol=1e-6) and y.shape == shape
    assert [*layer.state_dict()] == ["weight", "bias"] and isinstance(layer, nn.LayerNorm)
    assert repr(layer) == "LayerNorm1d(6, eps=1e-05)" and layer.dim == 6


def test_running_variance_is_the_unbiased_one_and_running_std_its_root():
    norm = nn.BatchNorm1d(1)
    mean, var = norm.update_stats(Tensor([[1.0], [3.0]]))
    assert (mean.tolist(), var.tolist()) == ([2.0], [1.0])
    assert norm.running_mean.item() == pytest.approx(0.2)
    assert norm.running_var.item() == pytest.approx(1.1)
    assert norm.running_std.item() == pytest.approx(1.1**0.5)
    assert "running_std" not in norm.state_dict()


def test_running_statistics_never_carry_a_graph():
    norm = nn.BatchNorm1d(3)
    held = norm.running_mean, norm.running_var, norm.num_batches_tracked
    arrays = [t.array for t in held]
    for seed in range(3):
        norm(leaf(5, 3, seed=seed, dtype="float32"))
    for t, array in zip(held, arrays):
        assert t.is_leaf and not t.requires_grad and t._edges == ()
        assert t.array is array  # in place: a state dict taken before sees it
    assert (norm.running_mean is held[0]) and norm.num_batches_tracked.item() == 3
    mean, var = norm.update_stats(leaf(5, 3, dtype="float32"))
    assert not mean.requires_grad and not var.requires_grad
    norm.eval()(leaf(5, 3, dtype="float32")).sum().backward()


def test_update_stats_returns_the_batch_even_where_nothing_is_kept():
    x, numbers = leaf(4, 3, 2), normal(4, 3, 2)
    for norm in (nn.BatchNorm1d(3, dtype="float64"), nn.BatchNorm1d(3, track_running_stats=False)):
        mean, var = norm.to("float64").update_stats(x)  # numpy() refuses what carries a graph
        np.testing.assert_allclose(mean.numpy(), numbers.mean(axis=(0, 2)))
        np.testing.assert_allclose(var.numpy(), numbers.var(axis=(0, 2)))
    assert nn.BatchNorm1d(3, track_running_stats=False).running_mean is None


def test_evaluation_does_not_depend_on_the_rest_of_the_batch():
    norm = nn.BatchNorm1d(2)
    norm(Tensor(normal(9, 2, dtype="float32")))
    norm.eval()
    x = Tensor(normal(5, 2, seed=1, dtype="float32"))
    together, alone = norm(x).data.numpy(), [norm(x[i : i + 1]).data.numpy() for i in range(5)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-6)
    assert norm(x[:0]).shape == (0, 2)  # nothing in, nothing out


def test_a_failed_step_leaves_the_statistics_alone():
    norm = nn.BatchNorm1d(2)
    for wrong in (normal(1, 2), normal(0, 2), normal(3, 4), normal(3, 2)):
        with pytest.raises((RuntimeError, ValueError)):
            norm(Tensor(wrong if wrong.shape == (3, 2) else wrong.astype("float32")))
    assert norm.num_batches_tracked.item() == 0 and norm.running_mean.tolist() == [0.0, 0.0]


def test_a_bias_before_a_batch_norm_does_nothing():
    linear, norm = nn.Linear(3, 4, dtype="float64"), nn.BatchNorm1d(4, dtype="float64")
    x = Tensor(normal(8, 3))
    before = norm(linear(x)).data.numpy()
    linear.bias.data = linear.bias.data + 5.0
    y = norm(linear(x))
    np.testing.assert_allclose(y.data.numpy(), before, atol=1e-9)
    assert np.abs(grad(y, linear.bias, normal(8, 4, seed=1))[0].numpy()).max() < 1e-9


# ---- dropout ----


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_zeroes_with_probability_p_and_keeps_the_mean(p):
    y = nn.Dropout(p, Generator(0))(Tensor(np.ones((400, 500)))).numpy()
    assert abs((y == 0).mean() - p) < 0.005
    assert abs(y.mean() - 1) < 0.03 and y.max() == pytest.approx(1 / (1 - p), rel=1e-4)
    rows, columns = (y == 0).mean(axis=1), (y == 0).mean(axis=0)
    assert rows.std() > 0 and columns.std() > 0  # neither whole rows nor whole columns


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 4), (5,), (), (0, 3), (2, 3, 4)])
def test_dropout_is_its_mask_and_the_scale_of_the_probability_that_was_used(shape, dtype):
    p, used = 0.3, round(0.3 * 65536) / 65536
    x, g = leaf(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    y = nn.Dropout(p, Generator(7))(x)
    keep = keep_mask(shape, p, seed=7, offset=0)
    expected = keep / (1 - used)
    np.testing.assert_allclose(y.data.numpy(), x.data.numpy() * expected, rtol=1e-6)
    np.testing.assert_allclose(grad(y, x, g)[0].numpy(), g * expected, rtol=1e-6)
    assert y.dtype == dtype


def test_dropout_in_evaluation_is_the_same_object_and_draws_nothing():
    generator = Generator(3)
    x = leaf(4, 5)
    assert nn.Dropout(0.5, generator).eval()(x) is x and nn.Dropout(0.0, generator)(x) is x
    assert F.dropout(x, 0.5, training=False, generator=generator) is x
    assert generator.get_state()["offset"] == 0
    with fork_rng() as default:
        before = default.get_state()
        nn.Dropout(0.5).eval()(x)
        assert default.get_state() == before
        nn.Dropout(0.5)(x)
        assert default.get_state() != before


def test_dropout_of_everything_is_zero_and_so_is_its_gradient():
    x = leaf(3, 4)
    y = nn.Dropout(1.0)(x)
    assert not y.data.numpy().any() and not grad(y, x, normal(3, 4))[0].numpy().any()


def test_dropout_draws_a_new_mask_each_time_and_a_seed_repeats_it():
    x = Tensor(np.ones(200))
    manual_seed(4)
    first, second = nn.Dropout()(x).tolist(), nn.Dropout()(x).tolist()
    manual_seed(4)
    assert nn.Dropout()(x).tolist() == first != second


def test_gradcheck_passes_through_a_seeded_dropout():
    assert gradcheck(lambda x: F.dropout(x, 0.4, generator=Generator(1)), [normal(4, 5)], order=2)


# ---- what is said to input that cannot be meant ----


def f32(*shape):
    return Tensor(np.ones(shape, dtype="float32"))


REFUSED = {
    "Embedding range": (
        lambda: nn.Embedding(3, 2)([0, 3]),
        IndexError,
        "^Embedding has 3 rows: index 3 is out of range: expected 0 to 2",
    ),
    "Embedding negative": (lambda: nn.Embedding(3, 2)([-1]), IndexError, "index -1"),
    "Embedding float": (lambda: nn.Embedding(3, 2)([0.0]), TypeError, "expects integers, got f"),
    "Embedding bool": (lambda: nn.Embedding(3, 2)([True]), TypeError, "expects integers, got bool"),
    "Embedding padding": (
        lambda: nn.Embedding(3, 2, padding_idx=3),
        IndexError,
        "padding_idx from -3 to 2, got 3",
    ),
    "LogSoftmax dim": (lambda: nn.LogSoftmax(2)(f32(2, 3)), IndexError, "dim from -2 to 1, got 2"),
    # a call, the type of the error (torch's), and words of the message
    "Linear size": (lambda: nn.Linear(4, 2)(f32(2, 3)), RuntimeError, "Linear expects 4.*(2, 3)"),
    "Linear image": (
        lambda: nn.Linear(784, 2)(f32(32, 28, 28)),
        RuntimeError,
        r"^Linear expects 784 features in the last axis, got \(32, 28, 28\): flatten first\?$",
    ),
    "Linear transposed": (lambda: nn.Linear(4, 2)(f32(4, 3)), RuntimeError, "transposed"),
    "Linear no axis": (lambda: nn.Linear(4, 2)(Tensor(1.0)), RuntimeError, r"4 features.*got \(\)"),
    "Linear int": (
        lambda: nn.Linear(3, 2)([[1, 2, 3]]),
        RuntimeError,
        "float32, got int64.*float32",
    ),
    "Linear float64": (
        lambda: nn.Linear(3, 2)(Tensor(normal(2, 3))),
        RuntimeError,
        r"^Linear expects float32, got float64: convert it with \.to\('float32'\)$",
    ),
    "Linear float32": (
        lambda: nn.Linear(3, 2, dtype="float64")(f32(2, 3)),
        RuntimeError,
        "expects float64, got float32",
    ),
    "Flatten dim": (lambda: nn.Flatten(3)(f32(2, 3)), IndexError, "^Flatten.*-2 to 1, got 3"),
    "Flatten 1": (lambda: nn.Flatten()(f32(2)), IndexError, "^Flatten.*-1 to 0, got 1"),
    "Flatten order": (
        lambda: nn.Flatten(1, 0)(f32(2, 3)),
        RuntimeError,
        "start_dim 1 after end_dim 0",
    ),
    "Softmax dim": (
        lambda: nn.Softmax()(f32(3)),
        IndexError,
        r"^Softmax.*-1 to 0, got 1 for \(3,\)",
    ),
    "log_softmax dim": (lambda: F.log_softmax(f32(3), 1), IndexError, "LogSoftmax.*got 1"),
    "GELU": (lambda: nn.GELU("erf")(f32(3)), RuntimeError, "'none' or 'tanh', got 'erf'"),
    "Residual": (
        lambda: nn.Residual(nn.Linear(4, 1))(f32(3, 4)),
        RuntimeError,
        r"^Residual expects.*\(3, 4\) became \(3, 1\)",
    ),
    "LayerNorm size": (
        lambda: nn.LayerNorm(4)(f32(2, 3)),
        RuntimeError,
        r"^LayerNorm expects 4 features in the last axis, got \(2, 3\)",
    ),
    "LayerNorm sizes": (
        lambda: nn.LayerNorm((2, 3))(f32(5, 3, 2)),
        RuntimeError,
        r"^LayerNorm expects the last axes to be \(2, 3\), got \(5, 3, 2\): reshape",
    ),
    "LayerNorm1d size": (
        lambda: nn.LayerNorm1d(4)(f32(2, 3)),
        RuntimeError,
        r"4 features in the last axis, got \(2, 3\).*LayerNorm1d",
    ),
    "LayerNorm dtype": (
        lambda: nn.LayerNorm(3)(Tensor(normal(2, 3))),
        RuntimeError,
        "float32, got f",
    ),
    "LayerNorm weight": (
        lambda: F.layer_norm(f32(2, 3), (2, 3), f32(3)),
        RuntimeError,
        r"weight and bias to be \(2, 3\), got \(3,\)",
    ),
    "LayerNorm eps": (
        lambda: nn.LayerNorm(3, eps=0),
        ValueError,
        "^LayerNorm expects eps > 0.*got 0",
    ),
    "LayerNorm1d eps": (lambda: nn.LayerNorm1d(3, eps=-1.0), ValueError, "LayerNorm1d .*got -1.0"),
    "layer_norm eps": (lambda: F.layer_norm(f32(3), 3, eps=0.0), ValueError, "eps > 0"),
    "BatchNorm eps": (
        lambda: nn.BatchNorm2d(3, eps=0.0),
        ValueError,
        "^BatchNorm2d expects eps > 0",
    ),
    "batch_norm eps": (lambda: F.batch_norm(f32(2, 3), None, None, eps=0), ValueError, "eps > 0"),
    "BatchNorm1d axes": (
        lambda: nn.BatchNorm1d(3)(f32(2, 3, 4, 5)),
        ValueError,
        r"^BatchNorm1d expects \(B, C\) or \(B, C, L\) with C = 3, got \(2, 3, 4, 5\)",
    ),
    "BatchNorm2d axes": (
        lambda: nn.BatchNorm2d(3)(f32(2, 3)),
        ValueError,
        r"^BatchNorm2d expects \(B, C, H, W\) with C = 3, got \(2, 3\)",
    ),
    "BatchNorm channels": (lambda: nn.BatchNorm1d(3)(f32(2, 4)), RuntimeError, "C = 3, got .2, 4"),
    "BatchNorm channels last": (
        lambda: nn.BatchNorm1d(3)(f32(2, 4, 3)),
        RuntimeError,
        "come second",
    ),
    "BatchNorm channels eval": (
        lambda: nn.BatchNorm1d(3).eval()(f32(2, 1)),
        RuntimeError,
        "C = 3, got .2, 1",
    ),
    "BatchNorm single": (
        lambda: nn.BatchNorm1d(3)(f32(1, 3)),
        ValueError,
        r"^BatchNorm1d expects more than 1 value per channel when training, got \(1, 3\).*eval\(\)",
    ),
    "BatchNorm single pixel": (
        lambda: nn.BatchNorm2d(3)(f32(1, 3, 1, 1)),
        ValueError,
        "more than 1",
    ),
    "BatchNorm empty": (lambda: nn.BatchNorm1d(3)(f32(0, 3)), ValueError, "empty batch.*skip"),
    "BatchNorm forgetful single": (
        lambda: nn.BatchNorm1d(3, track_running_stats=False).eval()(f32(1, 3)),
        ValueError,
        "more than 1",
    ),
    "BatchNorm dtype": (
        lambda: nn.BatchNorm1d(3)(Tensor(normal(4, 3))),
        RuntimeError,
        r"^BatchNorm1d expects float32, got float64.*\.to\('float32'\)",
    ),
    "BatchNorm dtype of statistics": (
        lambda: nn.BatchNorm1d(3, affine=False)(Tensor(normal(4, 3))),
        RuntimeError,
        "expects float32, got float64",
    ),
    "batch_norm axes": (lambda: F.batch_norm(f32(3), None, None), RuntimeError, r"got \(3,\)"),
    "batch_norm channels": (
        lambda: F.batch_norm(f32(2, 3), f32(4), f32(4)),
        RuntimeError,
        r"4 channels in axis 1, got \(2, 3\)",
    ),
    "batch_norm statistics": (
        lambda: F.batch_norm(f32(2, 3), None, None),
        RuntimeError,
        "running_mean and running_var",
    ),
    "Dropout below": (lambda: nn.Dropout(-0.1), ValueError, "^Dropout.*from 0 to 1, got -0.1"),
    "Dropout above": (lambda: nn.Dropout(1.5), ValueError, "from 0 to 1, got 1.5"),
    "Dropout nan": (lambda: nn.Dropout(float("nan")), ValueError, "from 0 to 1, got nan"),
    "dropout above": (lambda: F.dropout(f32(3), 2.0), ValueError, "got 2.0"),
    "dropout above eval": (lambda: F.dropout(f32(3), 2.0, training=False), ValueError, "got 2.0"),
    "dropout seed": (lambda: nn.Dropout(0.5, 3)(f32(3)), TypeError, "Generator"),
    "one_hot range": (lambda: F.one_hot([0, 3], 3), IndexError, "3 is out of range"),
    "one_hot float": (lambda: F.one_hot([0.5]), TypeError, "integer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_input_that_cannot_be_meant_is_refused_with_a_reason(name):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        call()


def test_a_shape_error_is_torchs_runtime_error_and_numpys_value_error():
    with pytest.raises(ShapeError) as caught:
        nn.Linear(4, 2)(f32(2, 3))
    assert isinstance(caught.value, RuntimeError) and isinstance(caught.value, ValueError)


# ---- calls that older notebooks make ----


def test_the_calls_of_older_notebooks_still_work():
    layer = nn.Linear(in_features=10, out_features=5, bias=True)
    assert isinstance(layer, nn.Module)
    assert repr(layer) == "Linear(in_features=10, out_features=5, bias=True)"
    assert len(nn._unpack_params([layer])) == 2 and nn._child_modules({"a": layer}) == [layer]
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 10))
    assert isinstance(model.modules, tuple) and [type(m).__name__ for m in model][1] == "ReLU"
    norm = nn.BatchNorm1d(dim=512)
    assert (norm.dim, norm.eps, norm.momentum) == (512, 1e-5, 0.1)
    assert norm.running_mean.shape == norm.running_std.shape == (512,)
    assert nn.LayerNorm1d(10, 1e-6).weight.shape == (10,) and nn.Dropout(p=0.5).p == 0.5
    assert nn.Residual(fn=layer).fn is layer and nn.Identity()(3) == 3


def test_softmax_gives_the_numbers_that_older_notebooks_show():
    t = Tensor([[1.25721, 1.066163], [1.123695, -0.410479], [0.047494, -1.200239]])
    expected = [[0.547617, 0.452383], [0.822616, 0.177384], [0.776907, 0.223093]]
    np.testing.assert_allclose(nn.Softmax()(t, dim=1).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(nn.Softmax()(t).numpy(), expected, atol=1e-6)


def test_every_public_name_is_there_and_documented():
    for name in nn.__all__:
        assert getattr(nn, name).__doc__, name
    assert {"_unpack_params", "_child_modules"} <= vars(nn).keys()
    assert nn.functional is F


def test_importing_nn_loads_neither_torch_nor_matplotlib():
    program = "import sys, minima.nn; print({'torch', 'matplotlib', 'numba'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_small_network_learns_with_everything_in_it():
    manual_seed(0)
    rng = np.random.default_rng(0)
    x, labels = normal(64, 3, 4, dtype="float32"), rng.integers(0, 3, 64)
    x += np.eye(3, 4, dtype="float32")[labels][:, None] * 2
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 16, bias=False),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Residual(
            nn.Sequential(nn.LayerNorm1d(16), nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1))
        ),
        nn.Linear(16, 3),
    )
    loss_fn, optimizer = nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = loss_fn(model(Tensor(x)), labels).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_fn(model(Tensor(x)), labels)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    accuracy = (model.eval()(Tensor(x)).argmax(axis=1) == labels).mean().item()
    assert loss.item() < 0.3 * first and accuracy > 0.95
