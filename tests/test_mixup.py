"Mixup: the formula, both variants, odd batches, accumulated gradients, resumed exactly."

import numpy as np
import pytest

import minima as mi
from minima import nn, optim
from minima.algorithms import LabelSmoothing, MixUp
from minima.algorithms.mixup import mixup_batch
from minima.autograd import Tensor
from minima.data import DataLoader, TensorDataset
from minima.random import Generator, default_generator
from minima.trainer import Trainer
from minima.trainer.events import Event

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 3), (1, 4), (5,), (4, 2, 3, 2), (0, 3)])
def test_the_formula(shape, dtype):
    x, y = rng.normal(size=shape).astype(dtype), np.arange(shape[0])
    mixed, others, mixing = mixup_batch(Tensor(x), Tensor(y), 0.7, generator=Generator(3))
    assert 0 <= mixing <= 0.5 and type(mixing) is float
    assert sorted(others.tolist()) == y.tolist() and others.dtype == y.dtype
    expected = (1 - mixing) * x + mixing * x[others.numpy()]
    np.testing.assert_allclose(mixed, expected, rtol=4 * np.finfo(dtype).eps, atol=1e-7)
    assert mixed.dtype == dtype and mixed.shape == shape


def test_share_and_order_may_be_given():
    x, y = Tensor([[0.0], [10.0], [20.0]]), Tensor([0, 1, 2])
    mixed, others, mixing = mixup_batch(x, y, mixing=0.25, indices=[1, 2, 0])
    assert mixed.tolist() == [[2.5], [12.5], [15.0]] and others.tolist() == [1, 2, 0]
    assert mixing == 0.25 and x.tolist() == [[0.0], [10.0], [20.0]]
    state = default_generator.get_state()
    mixup_batch(x, y, mixing=0.25, indices=[1, 2, 0])
    assert default_generator.get_state() == state


def test_several_inputs_are_mixed_alike():
    a, b = Tensor(rng.normal(size=(6, 2))), Tensor(rng.normal(size=(6, 5)))
    (p, q), others, m = mixup_batch((a, b), {"y": Tensor(np.arange(6))}, 1.0)
    order = others["y"].numpy()
    np.testing.assert_allclose(p, (1 - m) * a.numpy() + m * a.numpy()[order])
    np.testing.assert_allclose(q, (1 - m) * b.numpy() + m * b.numpy()[order])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_those_of_the_paper(alpha):
    one, g = Tensor([[1.0]]), Generator(0)
    shares = [mixup_batch(one, one, alpha, generator=g)[2] for _ in range(4000)]
    beta = np.random.default_rng(1).beta(alpha, alpha, 200_000)
    expected = np.minimum(beta, 1 - beta)
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(shares, q) - np.quantile(expected, q)) < 0.02
    assert abs(np.mean(shares) - expected.mean()) < 0.01


def test_draws_come_from_the_generator():
    x, y = Tensor(rng.normal(size=(9, 2))), Tensor(np.arange(9))
    runs = [mixup_batch(x, y, generator=Generator(seed)) for seed in (1, 1, 2)]
    assert runs[0][0].tolist() == runs[1][0].tolist() and runs[0][2] == runs[1][2] != runs[2][2]
    mi.manual_seed(1)
    assert mixup_batch(x, y)[2] == runs[0][2]


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf")])
def test_alpha_is_above_0(alpha):
    for make in (MixUp, lambda a: mixup_batch(mi.zeros(1, 2), Tensor([0]), a)):
        with pytest.raises(ValueError, match="alpha is above 0.*leave MixUp out"):
            make(alpha)


def test_what_cannot_be_mixed():
    with pytest.raises(TypeError, match=r"fractions; got inputs of int64: convert with .to"):
        mixup_batch(Tensor([[1, 2]]), Tensor([0]))
    with pytest.raises(ValueError, match="no Tensor with rows"):
        mixup_batch(np.zeros((2, 2)), Tensor([0, 1]))
    with pytest.raises(TypeError, match="generator must be a Generator"):
        MixUp(generator=3)
    with pytest.raises(TypeError, match=r"batches of inputs and targets, \(x, y\); got a Tensor"):
        fit(MixUp(), batches=[mi.zeros(4, 6, dtype="float64")])
    with pytest.raises(TypeError, match=r"got a list"):
        fit(MixUp(), batches=[[X[:4]]])


def test_defaults():
    method, here = MixUp(), default_generator
    assert (method.alpha, method.interpolate_loss, method.generator) == (0.2, False, here)
    x, share = Tensor([[1.0]]), Generator(4).numpy().beta(0.2, 0.2)
    assert mixup_batch(x, x, generator=Generator(4))[2] == min(share, 1 - share)


# ---- in a Trainer ----

X, Y = Tensor(rng.normal(size=(23, 6))), Tensor(rng.integers(0, 3, 23))
P = Tensor(rng.dirichlet(np.ones(3), size=23))
SPANS = [slice(0, 9), slice(9, 18), slice(18, 22), slice(22, 23)]  # the last has one row


def network():
    mi.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def fit(algorithms, targets=Y, batches=None, loss_fn=None, **settings):
    model = network()
    trainer = Trainer(
        model, batches or [(X[s], targets[s]) for s in SPANS], [(X, targets)], 3, loss_fn=loss_fn,
        algorithms=algorithms, progress_bar=False, lint=False, **settings,
        optimizers=optim.SGD(model.parameters(), lr=0.3),
    )  # fmt: skip
    trainer.fit()
    return trainer


def by_hand(targets, loss_of):
    "The same in a loop; `loss_of` has outputs, two targets and a share."
    model, g = network(), Generator(5)
    optimizer = optim.SGD(model.parameters(), lr=0.3)
    for _ in range(3):
        for span in SPANS:
            x, y = X.numpy()[span], targets.numpy()[span]
            share = g.numpy().beta(0.8, 0.8)
            share, order = min(share, 1 - share), g.permutation(len(x))
            optimizer.zero_grad()
            outputs = model(Tensor((1 - share) * x + share * x[order]))
            loss_of(outputs, y, y[order], share).backward()
            optimizer.step()
    return model


def same(trainer, model, rtol=1e-11):
    for a, b in zip(trainer.state.model.parameters(), model.parameters()):
        np.testing.assert_allclose(a.data, b.data, rtol=rtol, atol=1e-14)


def test_batches_may_be_lists_and_have_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            self.inner = network()

        def forward(self, a, b):
            return self.inner(a + b)

    model = Two()
    batch = [X[:5], X[5:10], Y[:5]]
    optimizer = optim.SGD(model.parameters(), lr=0.3)
    method = MixUp(0.8, generator=Generator(5))
    Trainer(
        model, [batch], max_duration=1, optimizers=optimizer, algorithms=method,
        progress_bar=False, lint=False,
    ).fit()  # fmt: skip
    (a, b), others, m = mixup_batch((X[:5], X[5:10]), Y[:5], 0.8, generator=Generator(5))
    other = network()
    mixed_losses(nn.CrossEntropyLoss())(other(a + b), Y[:5], others, m).backward()
    optim.SGD(other.parameters(), lr=0.3).step()
    for p, q in zip(model.parameters(), other.parameters()):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-12, atol=1e-15)


def test_targets_that_are_quantities_are_mixed_as_they_are():
    seen = []

    def loss_fn(outputs, targets):
        seen.append(targets)
        return (outputs.sum(axis=1) - targets).abs().mean()

    t = Tensor(rng.normal(size=4))
    fit(MixUp(0.8, generator=Generator(5)), batches=[(X[:4], t)], loss_fn=loss_fn, metrics={})
    _, others, m = mixup_batch(X[:4], t, 0.8, generator=Generator(5))
    np.testing.assert_allclose(seen[0], (1 - m) * t.numpy() + m * others.numpy(), rtol=1e-14)


def mixed_losses(loss_fn):
    return lambda out, a, b, m: loss_fn(out, a) * (1 - m) + loss_fn(out, b) * m


def mixed_rows(out, a, b, m):
    a, b = (np.eye(3)[t] if t.ndim == 1 else t for t in (a, b))
    return nn.CrossEntropyLoss()(out, (1 - m) * a + m * b)


@pytest.mark.parametrize("targets", [Y, P], ids=["labels", "rows"])
@pytest.mark.parametrize("parts", [1, 2, 50])
@pytest.mark.parametrize("interpolate", [False, True])
def test_it_does_what_a_loop_does(targets, parts, interpolate):
    method = MixUp(0.8, interpolate_loss=interpolate, generator=Generator(5))
    trainer = fit(method, targets, grad_accumulation=parts)
    same(trainer, by_hand(targets, mixed_rows))
    same(trainer, by_hand(targets, mixed_losses(nn.CrossEntropyLoss())))


@pytest.mark.parametrize("interpolate", [False, True])
def test_a_loss_that_is_not_linear_in_the_target(interpolate):
    trainer = fit(MixUp(0.8, interpolate, Generator(5)), P, loss_fn=nn.L1Loss(), metrics={})
    losses = mixed_losses(nn.L1Loss())
    rows = lambda out, a, b, m: nn.L1Loss()(out, (1 - m) * a + m * b)
    right, wrong = (losses, rows) if interpolate else (rows, losses)
    same(trainer, by_hand(P, right))
    with pytest.raises(AssertionError):
        same(trainer, by_hand(P, wrong))


def test_with_smoothed_labels_in_either_order():
    smoothing, g = LabelSmoothing(0.3), lambda: MixUp(0.8, generator=Generator(5))
    model = by_hand(Y, mixed_losses(nn.CrossEntropyLoss(label_smoothing=0.3)))
    for algorithms in ([smoothing, g()], [g(), smoothing]):
        same(fit(algorithms), model)
    same(fit([MixUp(0.8, True, Generator(5)), smoothing]), model)


def test_evaluations_and_callbacks_see_what_is_not_mixed():
    seen = []

    class Look:
        def batch_end(self, state):
            seen.append(state.batch)

        after_backward = batch_end

    trainer = fit(MixUp(), callbacks=Look())
    assert len(seen) == 24 and all(b[1].shape == b[0].shape[:1] for b in seen)
    np.testing.assert_array_equal(seen[0][0], X[:9])
    expected = nn.CrossEntropyLoss()(trainer.state.model(X), Y).item()
    assert trainer.history["eval_loss"][-1] == pytest.approx(expected, rel=1e-12)


def test_a_batch_that_was_given_up_leaves_nothing_behind():
    class Stop:
        def after_loss(self, state):
            if state.timestamp.batch == 2:
                state.stop("enough")

    method = MixUp(generator=Generator(5))
    trainer = fit(method, callbacks=Stop())
    assert trainer.state.timestamp.batch == 2
    trainer.state.callbacks.clear()
    trainer.fit()
    assert trainer.state.timestamp.batch == 12 and trainer.state.batch is None


def test_it_listens_to_four_events():
    assert [e for e in Event if MixUp().match(e, None)] == [
        Event.BATCH_START, Event.AFTER_FORWARD, Event.AFTER_LOSS, Event.AFTER_BACKWARD
    ]  # fmt: skip


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("cut", [1, 4, 5])
def test_resumed_bit_for_bit(own, cut, tmp_path):
    def run(seed, duration, folder):
        model = network()
        mi.manual_seed(seed)
        loader = DataLoader(TensorDataset(X, Y), 6, shuffle=True)
        trainer = Trainer(
            model, loader, max_duration="8ba", progress_bar=False, lint=False, autoresume=True,
            algorithms=MixUp(generator=Generator(seed) if own else None), save_folder=folder,
            optimizers=optim.Adam(model.parameters()), save_interval="1ba",
        )  # fmt: skip
        trainer.fit(duration)
        return [p.data.numpy().tobytes() for p in model.parameters()]

    straight = run(0, "8ba", tmp_path / "a")
    assert run(0, f"{cut}ba", tmp_path / "b") != straight
    assert run(9, f"{8 - cut}ba", tmp_path / "b") == straight
