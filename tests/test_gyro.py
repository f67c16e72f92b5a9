"Gyro dropout: what it means, and each defect that other implementations have, as a test."

import copy
import pickle
import warnings

import numpy as np
import pytest

import minima as mi
from minima import nn
from minima.autograd import Tensor, checkpoint
from minima.random import Generator, keep_mask
from minima.testing import gradcheck


def layer(p=0.5, sigma=8, tau=4, iterations=40, seed=0, **options):
    return nn.GyroDropout(iterations, 1, p, sigma, tau, generator=Generator(seed), **options)


def ones(*shape, dtype="float32"):
    return Tensor(np.ones(shape), dtype=dtype)


def kept(y):
    return y.numpy() != 0


def network(seed=0, order="random", iterations=12, clock="layer", sigma=16, tau=4):
    generator = Generator(seed)
    schedule = nn.GyroSchedule(iterations, 1, sigma, tau, order=order, generator=generator)
    schedule.clock = clock
    drops = [nn.GyroDropout(p=p, schedule=schedule, generator=generator) for p in (0.5, 0.25)]
    mi.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), drops[0], nn.Linear(8, 8), drops[1], nn.Linear(8, 3))
    return model, schedule


# ---- which subnetworks, and when ----


@pytest.mark.parametrize(
    "total, sigma, tau, period",
    [
        (196 * 100, 512, 4, 153),  # the seed's; floored too early it would be 152
        (196 * 100, 256, 16, 1225),  # 1216
        (196, 512, 4, 1),  # fewer iterations than subnetworks: once a division by zero
        (1, 512, 4, 1),
        (100, 8, 8, 100),
        (100, 8, 2, 25),
    ],
)
def test_the_period_gives_each_subnetwork_its_share(total, sigma, tau, period):
    schedule = nn.GyroSchedule(total, 1, sigma, tau, generator=Generator(0))
    assert schedule.period == period
    rounds = [schedule.chosen(t) for t in range(0, min(total, 3 * period), period)]
    for i, chosen in enumerate(rounds):
        assert schedule.chosen((i + 1) * period - 1) == chosen and len(chosen) == tau
        assert all(0 <= k < sigma for k in chosen)


def test_balanced_trains_every_subnetwork_equally_often():
    schedule = nn.GyroSchedule(100, 1, 20, 5, order="balanced", generator=Generator(1))
    turns = np.bincount([k for t in range(100) for k in schedule.chosen(t)], minlength=20)
    assert turns.tolist() == [25] * 20
    assert len({schedule.chosen(t) for t in range(100)}) == 4
    odd = nn.GyroSchedule(35, 1, 7, 3, order="balanced", generator=Generator(1))
    numbers = [k for t in range(0, 105, 15) for k in odd.chosen(t)]  # 7 rounds of 3
    assert odd.period == 15 and len({tuple(numbers[i : i + 7]) for i in (0, 7, 14)}) == 3
    assert all(sorted(numbers[i : i + 7]) == list(range(7)) for i in (0, 7, 14))


def test_random_is_independent_and_leaves_a_third_out():
    shares = []
    for seed in range(30):
        schedule = nn.GyroSchedule(100, 1, 400, 4, generator=Generator(seed))
        met = [k for t in range(100) for k in schedule.chosen(t)]
        assert len(met) == 400
        shares.append(len(set(met)) / 400)
    assert abs(np.mean(shares) - (1 - (1 - 1 / 400) ** 400)) < 0.01


def test_schedules_of_different_seeds_differ():
    a, b = (nn.GyroSchedule(10, 1, 64, 4, generator=Generator(s)) for s in (0, 1))
    assert a.chosen(0) != b.chosen(0)
    assert nn.GyroSchedule(10, 1, 64, 4, generator=Generator(0)).chosen(0) == a.chosen(0)


def test_a_round_lasts_a_period_and_then_others_are_trained():
    drop = layer(sigma=64, tau=4, iterations=48)
    seen = [kept(drop(ones(8, 50))) for _ in range(9)]
    assert drop.schedule.period == 3
    for i in range(1, 9):
        assert np.array_equal(seen[i], seen[i - 1]) == (i % 3 != 0)


# ---- who is trained by which rows ----


@pytest.mark.parametrize("batch, tau", [(8, 4), (256, 16), (10, 4), (7, 3), (5, 5), (33, 16)])
def test_rows_are_divided_evenly_in_stretches(batch, tau):
    rows = layer(sigma=64, tau=tau).schedule.rows(batch, 3)
    counts = np.bincount(rows, minlength=tau)
    assert (np.diff(rows) >= 0).all() and counts.min() >= 1 and np.ptp(counts) <= 1
    if batch % tau == 0:
        assert np.array_equal(rows, np.repeat(np.arange(tau), batch // tau))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_with_fewer_rows_than_subnetworks_they_take_turns(batch):
    schedule = layer(sigma=64, tau=4).schedule
    turns = np.bincount(np.concatenate([schedule.rows(batch, t) for t in range(20)]), minlength=4)
    assert turns.tolist() == [5 * batch] * 4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "shape", [(8, 6), (10, 6), (3, 6), (1, 6), (0, 6), (8, 0), (5,), (6, 7, 6), (5, 2, 3, 3)]
)
def test_any_batch_any_rank_any_dtype(shape, dtype):
    drop = layer(p=0.75)
    y = drop(ones(*shape, dtype=dtype))
    assert y.shape == shape and y.dtype == dtype and set(np.unique(y)) <= {0, 4}
    chosen, rows = drop.schedule.chosen(0), drop.schedule.rows(shape[0], 0)
    masks = drop.masks(chosen, shape[1:])
    assert np.array_equal(kept(y), masks[rows])


@pytest.mark.parametrize("dims, shape, free", [(-1, (6, 5, 7), 1), (1, (6, 5, 4, 3), (2, 3))])
def test_mask_dims_are_the_axes_of_neurons(dims, shape, free):
    y = layer(mask_dims=dims)(ones(*shape))
    assert np.array_equal(y.max(axis=free), y.min(axis=free)) and 0 < kept(y).mean() < 1
    again = layer(mask_dims=(dims,))(ones(*shape))
    assert np.array_equal(y, again)


@pytest.mark.parametrize("dims", [0, -2, 2, (1, 2), -3])
def test_mask_dims_that_are_no_neurons_are_refused(dims):
    with pytest.raises(mi.autograd.ShapeError, match=r"cannot mask the axes .* of shape \(4, 3\)"):
        layer(mask_dims=dims)(ones(4, 3))


def test_a_number_is_no_batch():
    with pytest.raises(mi.autograd.ShapeError, match="a batch in the first axis"):
        layer()(Tensor(1.0))


def test_one_layer_at_two_widths():
    drop = layer()
    a, b, c = drop(ones(8, 6)), drop(ones(8, 9)), drop(ones(8, 6))
    assert b.shape == (8, 9) and np.array_equal(a, c)


# ---- masks ----


def test_a_mask_is_a_function_of_key_and_number():
    drop = layer(p=0.3, sigma=1000)
    key = tuple(int(n) for n in drop.key.array)
    for k in (0, 5, 999):
        assert np.array_equal(drop.masks([k], (13,))[0], keep_mask(13, 0.3, *key, start=13 * k))
    masks = drop.masks(range(1000), (20,))
    assert abs(masks.mean() - 0.7) < 0.01 and len(np.unique(masks, axis=0)) > 990


@pytest.mark.parametrize("p", [0.0, 0.25, 0.9, 1.0])
def test_the_probability_is_that_of_dropping(p):
    y = layer(p=p, sigma=64, tau=32)(ones(64, 200))
    assert abs(1 - kept(y).mean() - p) < 0.03
    assert set(np.unique(y)) == (
        {1} if p == 0 else {0} if p == 1 else {0, np.float32(1 / (1 - round(p * 65536) / 65536))}
    )


def test_p_0_counts_iterations_all_the_same():
    drop = layer(p=0.0)
    x = ones(4, 3)
    assert drop(x) is x and drop(x) is x and drop.schedule.iteration == 1


@pytest.mark.parametrize("size, block", [(12, 4), (13, 4), (3, 8), (6, 1)])
def test_blocks_are_dropped_together(size, block):
    masks = layer(block=block, sigma=200).masks(range(200), (size,))
    assert masks.shape == (200, size)
    for start in range(0, size, block):
        part = masks[:, start : start + block]
        assert (part.all(axis=1) | ~part.any(axis=1)).all() and 0.3 < part.mean() < 0.7
    assert len(np.unique(masks, axis=0)) == min(200, 2 ** -(-size // block)) or size == 6


def test_blocks_of_an_image_are_neighbours_in_memory():
    masks = layer(block=6).masks(range(8), (2, 2, 3))
    assert all(len(np.unique(masks[:, c])) <= 2 for c in range(2))
    assert np.array_equal(masks.min(axis=(2, 3)), masks.max(axis=(2, 3)))


def test_the_gradient_meets_the_same_mask():
    drop = layer(p=0.3)
    drop.schedule.clock = "hand"
    rng = np.random.default_rng(0)
    assert gradcheck(drop, [rng.normal(size=(6, 5))])
    x = Tensor(rng.normal(size=(10, 4, 3)), requires_grad=True)
    y, g = drop(x), rng.normal(size=(10, 4, 3))
    y.backward(g)
    expected = np.where(kept(y.data), g / (1 - round(0.3 * 65536) / 65536), 0)
    assert np.allclose(x.grad, expected, rtol=1e-12, atol=0)


def test_views_are_masked_as_what_they_show():
    drop = layer()
    drop.schedule.clock = "hand"
    x = np.random.default_rng(0).normal(size=(6, 10))
    assert np.array_equal(drop(Tensor(x).T), drop(Tensor(x.T.copy())))


# ---- layers together ----


def test_subnetwork_k_is_the_same_network_in_every_layer():
    model, schedule = network()
    first, second = model[1], model[3]
    for t in range(12):
        a, b = first(ones(8, 8)), second(ones(8, 8))
        chosen = schedule.chosen(t)
        assert schedule.iteration == t
        for drop, y in ((first, a), (second, b)):
            assert np.array_equal(kept(y), np.repeat(drop.masks(chosen, (8,)), 2, axis=0))
    assert not np.array_equal(first.key.array, second.key.array)
    assert first.p == 0.5 and second.p == 0.25


# ---- what counts as an iteration ----


def test_evaluation_returns_its_input_and_counts_nothing():
    model, schedule = network()
    x = ones(4, 6)
    model(x)
    state = schedule.state.tolist()
    model.eval()(x)
    h = ones(4, 8)
    assert model[1](h) is h and schedule.state.tolist() == state
    model.train()(x)
    assert schedule.iteration == 1


def test_parts_of_a_batch_are_one_iteration_if_so_told():
    model, schedule = network(clock="hand")
    for t in range(3):
        assert schedule.step() == t
        for _ in range(4):
            model(ones(2, 6))
    assert schedule.iteration == 2


def test_a_watched_model_counts_its_own_training_calls():
    drop = nn.GyroDropout(p=0.5, schedule=nn.GyroSchedule(9, 1, 8, 4))

    class Twice(nn.Module):
        def __init__(self):
            self.drop = drop

        def forward(self, x):
            return self.drop(self.drop(x))

    model = Twice()
    drop.schedule.watch(model)
    for _ in range(3):
        model(ones(2, 3))
    model.eval()(ones(2, 3))
    assert drop.schedule.iteration == 2
    drop.eval()
    model.training = True
    model(ones(2, 3))
    assert drop.schedule.iteration == 3
    drop.schedule.clock = "hand"
    model(ones(2, 3))
    assert drop.schedule.iteration == 3


def test_a_checkpoint_repeats_the_iteration():
    x = np.random.default_rng(0).normal(size=(8, 6))
    gradients = []
    for wrap in (lambda f: f, checkpoint):
        model, schedule = network(iterations=2)  # a new round in each iteration
        model.double()
        for _ in range(3):
            model.zero_grad()
            loss = (wrap(model)(Tensor(x)) ** 2).sum()
            loss.backward()
        gradients.append([p.grad.numpy() for p in model.parameters()])
        assert schedule.iteration == 2
    assert all(np.array_equal(a, b) for a, b in zip(*gradients))


# ---- state ----


def trained(model, steps, seed=3):
    "The model after `steps` steps, and its outputs."
    rng, outs = np.random.default_rng(seed), []
    optimizer = mi.optim.SGD(model.parameters(), lr=0.1)
    for i in range(12):
        x = Tensor(rng.normal(size=(7, 6)), dtype="float32")
        if i in steps:
            optimizer.zero_grad()
            out = model(x)
            (out**2).mean().backward()
            optimizer.step()
            outs.append(out.data.numpy())
    return outs


@pytest.mark.parametrize("order", ["random", "balanced"])
def test_training_goes_on_bit_for_bit(order, tmp_path):
    whole, _ = network(0, order)
    outs = trained(whole, range(12))
    part, _ = network(0, order)
    assert all(map(np.array_equal, trained(part, range(5)), outs[:5]))
    mi.save(part.state_dict(), tmp_path / "state.safetensors")
    other, schedule = network(1, order)  # other weights, keys and seeds; it has not run
    other.load_state_dict(mi.load(tmp_path / "state.safetensors"))
    assert schedule.iteration == 4
    assert all(map(np.array_equal, trained(other, range(5, 12)), outs[5:]))
    for path, t in whole.state_dict().items():
        assert np.array_equal(t, other.state_dict()[path]), path


def test_a_state_that_is_loaded_into_a_running_model_counts_at_once():
    (a, _), (b, _) = network(0), network(1)
    for model, times in ((a, 3), (b, 6)):
        for _ in range(times):
            model(ones(8, 6))
    b.load_state_dict(a.state_dict())
    for _ in range(6):
        assert np.array_equal(a(ones(8, 6)).data, b(ones(8, 6)).data)


def test_the_state_is_counted_in_place_as_all_that_a_model_saves():
    model, _ = network()
    model(ones(8, 6))
    state = model.state_dict()["1.schedule.state"]
    array, copied = state.array, state.clone()
    model(ones(8, 6))
    assert copied.tolist()[1] == 1 and state.tolist()[1] == 2
    assert model.state_dict()["1.schedule.state"].array is array


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_go_on_alike_and_apart(copied):
    model, schedule = network()
    schedule.watch(model)
    model(ones(8, 6))
    twin = copied(model)
    assert twin[1].schedule is twin[3].schedule is not schedule
    for _ in range(4):
        assert np.array_equal(model(ones(8, 6)).data, twin(ones(8, 6)).data)
    twin(ones(8, 6))
    assert (schedule.iteration, twin[1].schedule.iteration) == (4, 5)


def test_a_change_of_dtype_leaves_keys_and_counts():
    model, schedule = network()
    model(ones(8, 6))
    before = schedule.state.tolist(), model[1].key.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # large integers have no place in float16
        model.half()
    assert (schedule.state.tolist(), model[1].key.tolist()) == before
    assert (
        schedule.state.dtype == "uint64" and model(ones(8, 6, dtype="float16")).dtype == "float16"
    )


# ---- what is refused ----


@pytest.mark.parametrize(
    "options, error, words",
    [
        (dict(sigma=4, tau=512), ValueError, "exchanged.* sigma=512, tau=4"),
        (dict(tau=0), ValueError, "tau must be at least 1"),
        (dict(sigma=2.0), TypeError, "sigma must be an int; got 2.0"),
        (dict(max_epoch=0), ValueError, "max_epoch must be at least 1"),
        (dict(iters_per_epoch=None), TypeError, "iters_per_epoch is missing"),
        (dict(block=0), ValueError, "block must be at least 1"),
        (dict(schedule="fair"), ValueError, "'balanced'.*got 'fair'"),
        (dict(p=1.5), ValueError, "GyroDropout expects a probability"),
        (dict(p=-0.1), ValueError, "GyroDropout expects a probability"),
        (dict(schedule=nn.GyroSchedule(5)), TypeError, "its own iters_per_epoch: leave"),
    ],
)
def test_settings_that_make_no_sense(options, error, words):
    with pytest.raises(error, match=words):
        nn.GyroDropout(**{"iters_per_epoch": 10, **options})


def test_the_defaults_are_those_of_composer():
    drop = nn.GyroDropout(196, 100)
    assert repr(drop) == (
        "GyroDropout(\n  p=0.5\n  (schedule): GyroSchedule(sigma=256, tau=16, iterations=19600, "
        "order='random')\n)"
    )
    positional = nn.GyroDropout(10, 3, 0.3, 64, 8)
    assert (positional.p, positional.schedule.sigma, positional.schedule.tau) == (0.3, 64, 8)
    assert positional.schedule.iterations == 30
    assert repr(layer(block=2)).startswith("GyroDropout(\n  p=0.5, block=2\n")
    assert nn.GyroSchedule(3).iterations == 300 and drop.key.dtype == "uint64"


def test_masks_are_made_once_in_a_round():
    drop = layer(sigma=64, iterations=32)
    drop(ones(8, 5))
    (table,) = drop._kept.tables.values()
    drop(ones(8, 5))
    assert [*drop._kept.tables.values()][0] is table
    drop(ones(8, 5))
    assert [*drop._kept.tables.values()][0] is not table


def test_arrays_are_taken_as_tensors():
    assert layer()(np.ones((4, 3))).shape == (4, 3)
