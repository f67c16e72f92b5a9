"The lens: what it measures is what subnetworks do, and it leaves no trace."

import matplotlib
import numpy as np
import pytest

from minima import nn
from minima.algorithms import gyro_lens, subnetwork
from minima.autograd import Tensor, is_grad_enabled
from minima.functional import apply_gyro_dropout
from minima.random import Generator, manual_seed


def network(sigma=6, p=0.5):
    manual_seed(1)
    model = nn.Sequential(
        nn.Linear(5, 16), nn.Dropout(p), nn.Linear(16, 7), nn.Dropout(0.2), nn.Linear(7, 3)
    )
    return apply_gyro_dropout(model, 10, 1, sigma=sigma, tau=2, generator=Generator(2)).double()


def data(n=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)), rng.integers(0, 3, n)


def by_hand(model, x, k):
    "The scores of subnetwork `k`, from its masks."
    h = model[0](Tensor(x)).data.numpy()
    for drop, linear in ((model[1], model[2]), (model[3], model[4])):
        p = round(drop.p * 65536) / 65536
        h = np.where(drop.masks([k], h.shape[1:])[0], h / (1 - p), 0)
        h = linear(Tensor(h)).data.numpy()
    return h


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("numbers", [None, [4, 1], range(3), [2]])
def test_the_numbers_are_those_of_the_subnetworks(numbers):
    model, (x, y) = network(), data()
    seen = gyro_lens(model, [(Tensor(x[:12]), Tensor(y[:12])), (x[12:], y[12:])], numbers)
    chosen = list(range(6) if numbers is None else numbers)
    scores = [by_hand(model, x, k) for k in chosen]
    answers = np.array([s.argmax(1) for s in scores])
    assert seen.numbers == chosen
    assert np.allclose(seen.accuracies, (answers == y).mean(axis=1))
    assert np.allclose(seen.disagreement, (answers[:, None] != answers[None]).mean(axis=2))
    assert np.isclose(seen.ensemble, (sum(map(softmax, scores)).argmax(1) == y).mean())
    assert np.isclose(seen.full, (model.eval()(Tensor(x)).data.numpy().argmax(1) == y).mean())
    assert len(set(map(tuple, answers))) > 1 or len(chosen) == 1


@pytest.mark.parametrize("training", [True, False])
def test_no_trace_is_left(training):
    model, (x, y) = network(), data()
    model.train(training)
    model[3].training = not training
    schedule = model[1].schedule
    before = schedule.state.tolist()
    gyro_lens(model, [(x, y)])
    assert [model[i].training for i in (0, 1, 3)] == [training, training, not training]
    assert schedule.state.tolist() == before and schedule.only is None and is_grad_enabled()
    with pytest.raises(ZeroDivisionError), subnetwork(model, 2):
        assert schedule.only == 2 and not model[1].training
        1 / 0  # noqa: B018
    assert schedule.only is None and model[1].training is training


def test_subnetworks_nest():
    model, (x, _) = network(), data()
    with subnetwork(model, 1):
        with subnetwork(model, 4):
            inner = model(Tensor(x)).data
        outer = model(Tensor(x)).data
    assert np.allclose(inner, by_hand(model, x, 4)) and np.allclose(outer, by_hand(model, x, 1))


@pytest.mark.parametrize("number", [-1, 6])
def test_numbers_that_are_none(number):
    with pytest.raises(ValueError, match="numbered from 0 to sigma - 1"):
        with subnetwork(network(), number):
            pass
    with pytest.raises(ValueError, match="no subnetwork to look at"):
        gyro_lens(network(), [data()], [])
    with pytest.raises(ValueError, match="no GyroDropout"):
        gyro_lens(nn.Linear(5, 3), [data()])


def test_it_is_printed_and_drawn():
    matplotlib.use("agg")
    seen = gyro_lens(network(), [data()])
    lines = repr(seen).splitlines()
    assert len(lines) == 6 and lines[0].startswith("the full network")
    assert f"{seen.full:.1%}" in lines[0] and f"{seen.ensemble:.1%}" in lines[1]
    assert f"number {seen.accuracies.argmin()} " in lines[4]
    figure = seen.plot()
    assert len(figure.axes) == 3 and len(figure.axes[0].lines[0].get_ydata()) == 6
    assert repr(gyro_lens(network(), [data()], [0])).endswith("0.0%")
