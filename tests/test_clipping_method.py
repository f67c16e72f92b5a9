"Gradient clipping as a method: three kinds, beside PyTorch and the formula; once per batch."

import numpy as np
import pytest

import minima as mi
from minima import functional as cf
from minima import nn, optim
from minima.algorithms import GradientClipping, NoEffectWarning
from minima.algorithms.clipping import apply_gradient_clipping
from minima.autograd import Tensor, tensor
from minima.data import DataLoader, TensorDataset
from minima.trainer import InMemoryLogger, Trainer

RTOL = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-12}


class Everything(nn.Module):
    "Parameters of all kinds and odd shapes, some of them tied, frozen or without a gradient."

    def __init__(self):
        self.linear, self.single = nn.Linear(5, 3), nn.Linear(7, 1)
        self.table, self.norm = nn.Embedding(4, 6), nn.LayerNorm(5)
        self.kernel = nn.Parameter(np.ones((3, 2, 4), "float32"))
        self.scale, self.empty = nn.Parameter(2.0), nn.Parameter(np.ones((0, 3), "float32"))
        self.tied, self.unused = [self.linear], nn.Linear(2, 2)


def filled(dtype, scale=1.0, seed=0):
    "Everything, with random weights and gradients; one column of weights is zero."
    rng, model = np.random.default_rng(seed), Everything().to(dtype=dtype)
    for p in model.parameters():
        p.data = tensor(rng.normal(size=p.shape), dtype=dtype)
        p.grad = tensor(scale * rng.normal(size=p.shape), dtype=dtype)
    model.linear.weight.data[:, 1] = 0
    for p in model.unused.parameters():
        p.grad = None
    return model


def gradients(model):
    return [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]


def close(a, b, dtype):
    np.testing.assert_allclose(a, b, rtol=RTOL[dtype], atol=RTOL[dtype] * 1e-2)


def units():
    "For each parameter's name, keys to its units."
    return {
        "linear.weight": [np.s_[:, i] for i in range(3)],
        "table.weight": [np.s_[i] for i in range(4)],
        "kernel": [np.s_[i] for i in range(3)],
    }


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("ratio", [0.05, 1, 1e6])
def test_adaptive_clipping_is_the_formula_for_each_unit(dtype, ratio):
    model, expected = filled(dtype), filled(dtype)
    arrays = [p.grad.array for p in model.parameters() if p.grad is not None]
    assert apply_gradient_clipping(model, "adaptive", ratio) is None
    for path, p in expected.named_parameters():
        if p.grad is None or not p.size:
            continue
        g, w = p.grad.numpy(), p.data.numpy().astype("float64")
        for key in units().get(path, [...]):
            length = np.sqrt((g[key].astype("float64") ** 2).sum())
            most = ratio * max(np.sqrt((w[key] ** 2).sum()), 1e-3)
            if length > most:
                g[key] = g[key] * (most / length)
    for p, q in zip(model.parameters(), expected.parameters()):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            assert p.grad.dtype == dtype
            close(p.grad.numpy(), q.grad.numpy(), dtype)
    left = [p.grad.array for p in model.parameters() if p.grad is not None]
    assert all(a is b for a, b in zip(arrays, left, strict=True))


def test_a_unit_of_a_linear_is_a_column():
    model = nn.Linear(3, 2).double()
    model.weight.data = Tensor([[1.0, 10.0], [0.0, 0.0], [0.0, 0.0]])
    model.weight.grad = Tensor(np.full((3, 2), 2.0))
    apply_gradient_clipping(model, "adaptive", 0.5)
    g = model.weight.grad.numpy()
    assert np.linalg.norm(g[:, 0]) == pytest.approx(0.5)
    assert (g[:, 1] == 2).all()  # its norm, 3.5, is less than half of 10


def test_what_is_within_the_bound_stays_bit_for_bit():
    model = filled("float32", scale=1e-6)
    before = gradients(model)
    for kind in ("norm", "value", "adaptive"):
        apply_gradient_clipping(model, kind, 10.0)
    for a, b in zip(before, gradients(model)):
        assert (a is None and b is None) or a.tobytes() == b.tobytes()


def test_zero_gradients_stay_zero_and_bad_ones_stay_bad():
    model = nn.Linear(3, 2).double()
    model.weight.grad = Tensor([[0.0, np.nan], [0.0, 1.0], [0.0, 1.0]])
    model.bias.grad = Tensor([[np.inf, 1.0]])
    model.weight.data[...] = 0
    with np.errstate(invalid="ignore"):
        apply_gradient_clipping(model, "adaptive", 0.1)
    g = model.weight.grad.numpy()
    assert (g[:, 0] == 0).all() and np.isnan(g[:, 1]).all()
    assert not np.isfinite(model.bias.grad.numpy()).all()


def test_a_parameter_in_two_modules_is_a_unit_of_the_first():
    model = nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3, bias=False)).double()
    shared = model[1].weight = model[0].weight
    shared.grad = Tensor(np.arange(1.0, 10).reshape(3, 3))
    shared.data[...] = 1
    apply_gradient_clipping(model, "adaptive", 0.5)
    lengths = np.linalg.norm(shared.grad.numpy(), axis=1)
    assert lengths == pytest.approx(0.5 * 3**0.5)


def test_what_was_overwritten_is_noticed():
    model, x = nn.Linear(3, 2), tensor(np.ones((3, 2)), dtype="float32", requires_grad=True)
    model.weight.grad = tensor(np.ones((3, 2)), dtype="float32")
    loss = (model.weight.grad * x).sum()
    apply_gradient_clipping(model, "adaptive", 0.01)
    with pytest.raises(RuntimeError, match="adaptive clipping"):
        loss.backward()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["norm", "value"])
def test_two_kinds_are_those_of_torch(torch, kind, dtype):
    model = filled(dtype)
    params = [p for p in model.parameters() if p.grad is not None]
    theirs = [torch.tensor(p.data.numpy()).requires_grad_() for p in params]
    for t, p in zip(theirs, params):
        t.grad = torch.tensor(p.grad.numpy().copy())
    norm = apply_gradient_clipping(model, kind, 0.7)
    other = getattr(torch.nn.utils, f"clip_grad_{kind}_")(theirs, 0.7)
    for p, t in zip(params, theirs):
        close(p.grad.numpy(), t.grad.numpy(), dtype)
    assert (norm is None) == (kind == "value")
    assert norm is None or norm.item() == pytest.approx(other.item(), rel=RTOL[dtype])


@pytest.mark.parametrize("wrong, error, words", [
    (("l2", 1.0), ValueError, "is one of 'norm', 'value', 'adaptive'; got 'l2'$"),
    ((0.5, "norm"), ValueError, "got 0.5: are the two exchanged"),
    (("norm", "1"), TypeError, "clipping_threshold is a number; got '1'"),
    (("value", 0), ValueError, "must be above 0; got 0"),
    (("adaptive", float("nan")), ValueError, "must be above 0; got nan"),
])  # fmt: skip
def test_mistakes_are_named_at_both_doors(wrong, error, words):
    with pytest.raises(error, match=words):
        GradientClipping(*wrong)
    model = filled("float32")
    before = gradients(model)
    with pytest.raises(error, match=words):
        apply_gradient_clipping(model, *wrong)
    assert np.array_equal(before[0], model.parameters()[0].grad.numpy())


@pytest.mark.parametrize("kind", ["norm", "value", "adaptive"])
def test_without_gradients_it_warns_at_the_callers_line(kind):
    with pytest.warns(NoEffectWarning, match="after backward.., before step") as caught:
        assert apply_gradient_clipping(nn.Linear(2, 2), kind, 1.0) is None
    assert caught[0].filename == __file__


# ---- in a Trainer ----


def train(*clipping, algorithms=(), callbacks=(), loggers=(), **settings):
    mi.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    data = TensorDataset(x, (x.sum(axis=1) > 0).astype("int64"))
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    trainer = Trainer(
        model, DataLoader(data, 8), max_duration=1, callbacks=callbacks, loggers=loggers,
        optimizers=optim.SGD(model.parameters(), lr=0.1, momentum=0.9), progress_bar=False,
        algorithms=[*algorithms, *([GradientClipping(*clipping)] if clipping else [])], **settings,
    )  # fmt: skip
    trainer.fit()
    return model


@pytest.mark.parametrize("kind, order", [("norm", 2), ("value", np.inf)])
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_clipped_once_per_batch(kind, order, parts):
    found, logger = [], InMemoryLogger()

    class Look:
        def after_backward(self, state):  # callbacks come after algorithms
            numbers = [p.grad.numpy().ravel() for p in state.model.parameters()]
            found.append(np.linalg.norm(np.concatenate(numbers), order))

    train(kind, 0.01, callbacks=[Look()], loggers=[logger], grad_accumulation=parts)
    assert found == [pytest.approx(0.01, rel=1e-3)] * 5
    assert ("grad_norm" in logger.data) == (kind == "norm")
    if kind == "norm":
        assert [batch for batch, _ in logger.data["grad_norm"]] == [0, 1, 2, 3, 4]
        assert min(norm for _, norm in logger.data["grad_norm"]) > 0.01


@pytest.mark.parametrize("kind", ["norm", "value", "adaptive"])
def test_both_doors_are_the_same(kind):
    class ByHand:
        def match(self, event, state):
            return event == "after_backward"

        def apply(self, event, state):
            cf.apply_gradient_clipping(state.model, kind, 0.05)

    one, other, free = train(kind, 0.05), train(algorithms=[ByHand()]), train()
    states = [[p.numpy().tobytes() for p in m.state_dict().values()] for m in (one, other, free)]
    assert states[0] == states[1] != states[2]
