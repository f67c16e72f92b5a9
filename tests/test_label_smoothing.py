"Label smoothing, beside PyTorch's, as a function and in a Trainer."

import numpy as np
import pytest

import minima as mi
from minima import nn, optim
from minima.algorithms import LabelSmoothing
from minima.algorithms.label_smoothing import as_rows, smooth_labels
from minima.autograd import ShapeError, Tensor, grad
from minima.trainer import Trainer
from minima.trainer.events import Event, State

rng = np.random.default_rng(0)
SHAPES = [(7, 4), (1, 3), (5, 1), (4,), (3, 5, 2), (2, 3, 2, 4), (6, 10)]


def scores_and_labels(shape, dtype="float64"):
    axis = min(1, len(shape) - 1)
    labels = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    return Tensor(rng.normal(size=shape).astype(dtype), requires_grad=True), Tensor(labels)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7, 1.0])
def test_the_loss_is_that_of_pytorch(shape, smoothing, torch):
    z, labels = scores_and_labels(shape)
    loss = nn.CrossEntropyLoss()(z, smooth_labels(z, labels, smoothing))
    (gradient,) = grad(loss * -1.7, z)
    theirs = torch.tensor(z.detach().numpy(), requires_grad=True)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(
        theirs, torch.tensor(labels.numpy())
    )
    (expected * -1.7).backward()
    np.testing.assert_allclose(loss.item(), expected.item(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rows_are_probabilities_in_the_dtype_of_the_outputs(shape, dtype):
    z, labels = scores_and_labels(shape, dtype)
    rows, axis = smooth_labels(z, labels, 0.3), min(1, len(shape) - 1)
    assert rows.shape == z.shape and rows.dtype == dtype and not rows.requires_grad
    np.testing.assert_allclose(rows.sum(axis=axis), 1, rtol=4 * np.finfo(dtype).eps)
    classes = shape[axis]
    right = np.take_along_axis(rows.numpy(), np.expand_dims(labels.numpy(), axis), axis)
    np.testing.assert_allclose(right, 0.7 + 0.3 / classes, rtol=2 * np.finfo(dtype).eps)


def test_rows_of_probabilities_are_smoothed_alike():
    z = Tensor(rng.normal(size=(5, 3)).astype("float32"))
    p = rng.dirichlet(np.ones(3), size=5)
    rows = smooth_labels(z, p, 0.2)
    np.testing.assert_allclose(rows, 0.8 * p + 0.2 / 3, rtol=1e-6)
    assert rows.dtype == "float32"
    again = smooth_labels(z, smooth_labels(z, [0, 1, 2, 0, 1], 0.2), 0.5)
    np.testing.assert_allclose(again, smooth_labels(z, [0, 1, 2, 0, 1], 0.6), rtol=1e-6)


def test_arguments_are_left_alone():
    z, labels = scores_and_labels((4, 3))
    one_hot = as_rows(z, labels)
    before = one_hot.numpy().copy(), labels.numpy().copy()
    smooth_labels(z, one_hot, 0.5), smooth_labels(z, labels, 0.5)
    assert (one_hot.numpy() == before[0]).all() and (labels.numpy() == before[1]).all()


def test_defaults_and_arrays():
    assert LabelSmoothing().smoothing == 0.1
    rows = smooth_labels(np.zeros((2, 4), dtype="float32"), [0, 3])
    np.testing.assert_allclose(rows[1], [0.025, 0.025, 0.025, 0.925], rtol=1e-6)


def test_nothing_and_turned():
    assert smooth_labels(mi.zeros(0, 3), np.zeros(0, dtype="int64")).shape == (0, 3)
    z, p = mi.zeros(4, 3), rng.dirichlet(np.ones(4), size=3).T
    np.testing.assert_allclose(smooth_labels(z, p, 0.1), 0.9 * p + 0.1 / 3, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(smoothing):
    for make in (LabelSmoothing, lambda s: smooth_labels(mi.zeros(1, 2), [0], s)):
        with pytest.raises(ValueError, match="smoothing is a share, from 0 to 1, of all labels"):
            make(smoothing)


@pytest.mark.parametrize("labels, error, words", [
    ([0, 1, 3, 0], IndexError, "outside of its 3 classes"), ([0, -1, 0, 0], IndexError, "outside"),
    ([0, 1, -100, 0], IndexError, "leave such examples out"),
    ([[0], [1], [2], [0]], ShapeError, r"use target.reshape\(\(4,\)\)"),
    (np.eye(3, dtype="int64")[[0, 1, 2, 0]], ShapeError, r"one-hot, use target.argmax"),
    ([0.0, 1.0, 2.0, 0.0], TypeError, "integer labels"), ([0, 1], ShapeError, "labels"),
])  # fmt: skip
def test_labels_that_cannot_be_meant(labels, error, words):
    with pytest.raises(error, match=words):
        smooth_labels(mi.zeros(4, 3), Tensor(labels))


# ---- in a Trainer ----


def network(seed=0):
    mi.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


X, Y = Tensor(rng.normal(size=(23, 6))), Tensor(rng.integers(0, 3, 23))
BATCHES = [(X[:9], Y[:9]), [X[9:18], Y[9:18]], (X[18:22], Y[18:22]), (X[22:], Y[22:])]


def trained(algorithms=(), **settings):
    model = network()
    trainer = Trainer(
        model, BATCHES, [(X, Y)], 2, algorithms=algorithms, progress_bar=False,
        optimizers=optim.SGD(model.parameters(), lr=0.3), **settings,
    )  # fmt: skip
    trainer.fit()
    return trainer


@pytest.mark.parametrize("parts", [1, 3])
def test_it_trains_like_the_loss_with_smoothing(parts):
    ours = trained(LabelSmoothing(0.2), grad_accumulation=parts)
    theirs = trained(loss_fn=nn.CrossEntropyLoss(label_smoothing=0.2))
    for a, b in zip(ours.state.model.parameters(), theirs.state.model.parameters()):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours.history["loss"], theirs.history["loss"], rtol=1e-12)
    plain = trained()
    assert abs(plain.state.model[0].weight - ours.state.model[0].weight).max().item() > 1e-3


def test_evaluations_see_true_labels():
    seen = []

    def look(outputs, targets):
        seen.append(targets)
        return 0.0

    trainer = trained(LabelSmoothing(0.5), metrics=look)
    assert len(seen) == 2 and all(t is Y for t in seen)
    expected = nn.CrossEntropyLoss()(trainer.state.model(X), Y).item()
    assert trainer.history["eval_loss"][-1] == pytest.approx(expected, rel=1e-12)


def test_after_the_step_all_is_as_it_was():
    seen = []

    class Look:
        def after_loss(self, state):
            seen.append(state.batch[1].ndim)

        def batch_end(self, state):
            seen.append(state.batch)

    trained(LabelSmoothing(0.5), callbacks=Look())
    assert seen[::2] == [2] * 8 and all(a is b for a, b in zip(seen[1::2], BATCHES * 2))


def test_it_acts_between_outputs_and_loss_only():
    method = LabelSmoothing()
    assert [e for e in Event if method.match(e, None)] == [Event.AFTER_FORWARD]
    state = State(None, batch=(X, X, Y), outputs=mi.zeros(23, 3))
    method.apply(Event.AFTER_FORWARD, state)
    assert state.batch[0] is X and state.batch[1] is X and state.batch[2].shape == (23, 3)
