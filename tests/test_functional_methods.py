"Methods as functions of a model: the seed's loop, the orders of arguments, what is kept."

import subprocess
import sys

import numpy as np
import pytest

import minima.functional as cf
from minima import nn, optim
from minima.algorithms import NoEffectWarning
from minima.autograd import Tensor
from minima.data import DataLoader, TensorDataset
from minima.random import Generator, manual_seed


def network(p=0.5):
    manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.Dropout(p),
        nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9)),
        nn.Linear(8, 3),
    )


def loader(n=20, batch_size=5):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def gyro(model):
    return [m for m in nn.Module.modules(model) if isinstance(m, nn.GyroDropout)]


def test_the_loop_of_the_seed_runs_as_it_is_written():
    import minima.functional as cf  # where the seed imports a composer
    import minima.nn.functional as F
    from minima import optim

    def training_loop(model, train_loader):
        cf.apply_gyro_dropout(
            model,
            sigma = 512,
            tau = 4,
            max_iteration = 196
            )  # fmt: skip

        opt = optim.Adam(model.parameters())
        loss_fn = F.cross_entropy
        model.train()

        for X, y in train_loader:
            y_hat = model(X)
            loss = loss_fn(y_hat, y)
            loss.backward()
            opt.step()
            opt.zero_grad()

    model = network()
    before = [p.numpy().copy() for p in (q.data for q in model.parameters())]
    training_loop(model, loader())
    first, second = gyro(model)
    assert first.schedule is second.schedule and first.schedule.iteration == 3
    schedule = first.schedule
    assert (schedule.sigma, schedule.tau, schedule.iterations) == (512, 4, 19600)
    assert schedule.period == 153
    assert not any(np.array_equal(a, b.data) for a, b in zip(before, model.parameters()))


def test_the_order_of_composer():
    model = cf.apply_gyro_dropout(network(), 196, 10, 0.25, 64, 8)
    schedule = gyro(model)[0].schedule
    assert schedule.iterations == 1960 and (schedule.sigma, schedule.tau) == (64, 8)
    assert [drop.p for drop in gyro(model)] == [0.25, 0.25]
    named = cf.apply_gyro_dropout(network(), iters_per_epoch=196, max_epoch=10)
    assert [drop.block for drop in gyro(named)] == [1, 1]
    assert gyro(cf.apply_gyro_dropout(network(), 5, 3, 1))[0].p == 1
    assert repr(gyro(named)[0].schedule) == (
        "GyroSchedule(sigma=256, tau=16, iterations=1960, order='random')"
    )


@pytest.mark.parametrize(
    "args, options, error, words",
    [
        ((0.5, 256, 16), {}, TypeError, "by position.*got 0.5 for iters_per_epoch"),
        ((512, 4, 196), {}, TypeError, "by position.*196 for p. Write names: .*sigma=512"),
        ((0.5,), {}, TypeError, "by position.*got 0.5 for iters_per_epoch and None for p"),
        ((5, 10, 1.5), {}, TypeError, "by position.*1.5 for p"),
        ((), {}, TypeError, "how many iterations has an epoch.*max_iteration=196"),
        ((5,), {"max_iteration": 5}, TypeError, "Give it once"),
        ((), {"max_iteration": 5, "sigma": 4, "tau": 512}, ValueError, "exchanged"),
        ((), {"max_iteration": 5, "p": -1}, ValueError, "a probability from 0 to 1"),
        ((), {"max_iteration": 5, "schedule": "x"}, ValueError, "a schedule is one of"),
        ((), {"max_iteration": 0}, ValueError, "at least 1"),
    ],
)
def test_arguments_that_look_exchanged(args, options, error, words):
    model = network()
    with pytest.raises(error, match=words):
        cf.apply_gyro_dropout(model, *args, **options)
    assert not gyro(model)


def test_each_layer_keeps_its_p_its_mode_and_its_generator():
    model, own = network(0.3), Generator(5)
    model[1].generator = own
    model.eval()
    assert cf.apply_gyro_dropout(model, 10) is model
    assert [drop.p for drop in gyro(model)] == [0.3, 0.9]
    assert not any(m.training for m in nn.Module.modules(model))
    assert gyro(model)[0].key.tolist() == [5, 0]
    x = Tensor(np.ones((4, 6)), dtype="float32")
    assert np.array_equal(model(x).data, model(x).data)
    assert gyro(model)[0].schedule.iteration == 0


def test_a_root_is_replaced_and_watched():
    drop = cf.apply_gyro_dropout(nn.Dropout(0.3), 10)
    assert isinstance(drop, nn.GyroDropout) and drop.p == 0.3
    for _ in range(3):
        drop(Tensor(np.ones((4, 6))))
    assert drop.schedule.iteration == 2


def test_a_dropout_used_twice_counts_once():
    shared = nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(6, 4), shared, nn.Linear(4, 9), shared)
    cf.apply_gyro_dropout(model, 10, sigma=8, tau=2)
    assert model[1] is model[3]
    for _ in range(3):
        y = model(Tensor(np.ones((5, 6)), dtype="float32"))
    assert y.shape == (5, 9) and model[1].schedule.iteration == 2


def test_optimizers_lose_nothing():
    model = network()
    optimizer = optim.Adam(model.parameters())
    cf.apply_gyro_dropout(model, 10, optimizers=optimizer)
    held = optimizer.param_groups[0]["params"]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]


def test_no_dropout_is_a_warning_that_names_the_caller():
    for model in (nn.Sequential(nn.Linear(2, 2)), cf.apply_gyro_dropout(network(), 10)):
        with pytest.warns(NoEffectWarning, match="there is no Dropout") as caught:
            hooks = repr(model._hooks and vars(model._hooks))
            assert cf.apply_gyro_dropout(model, 10) is model
        assert repr(model._hooks and vars(model._hooks)) == hooks
        assert caught[0].filename == __file__
    assert len({id(drop.schedule) for drop in gyro(model)}) == 1


def test_the_two_functional_modules_tell_each_other_apart():
    import minima.nn.functional as F

    assert "minima.nn.functional" in cf.__doc__ and "minima.functional" in F.__doc__


def test_doors_open_when_they_are_asked_for():
    program = """
import sys
import minima as mi
rooms = ("minima.trainer", "minima.algorithms", "minima.functional")
assert not set(rooms) & sys.modules.keys()
print(mi.functional.apply_gyro_dropout.__name__, mi.algorithms.GyroDropout.__name__)
print(mi.trainer.Trainer.__name__)
assert set(rooms) <= sys.modules.keys()
from minima import *
assert (trainer, algorithms, functional) == tuple(map(sys.modules.get, rooms))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["apply_gyro_dropout", "GyroDropout", "Trainer"], done.stderr


def test_the_list_names_functions_of_modules_of_their_own():
    for name in cf.__all__:
        assert getattr(cf, name).__module__.startswith("minima.algorithms.")
