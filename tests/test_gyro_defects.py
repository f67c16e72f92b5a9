"""The defects of other implementations of gyro dropout, and of what surrounds it, with tests.

What others do                                               | what does not happen here, or in
-------------------------------------------------------------|-----------------------------------
B % tau != 0, B < tau raise, B = 1 returns an empty array    | test_gyro: any_batch, rows; here
fewer iterations than sigma: division by zero                | test_gyro: the_period; here
floored too early: up to tau iterations of a period lost     | test_gyro: the_period
p = 1: division by zero                                      | test_gyro: the_probability; here
masks by x.shape[1]: images and sequences raise or are wrong | test_gyro: any_batch, mask_dims
a layer used at two widths raises                            | test_gyro: one_layer_at_two_widths
drawn with replacement: a third is never trained             | test_gyro: random, balanced
each layer draws by itself: there is no subnetwork k         | test_gyro: subnetwork_k; here
bfloat16 in, float32 out                                     | here: no_dtype
masks are not saved                                          | test_gyro: training_goes_on
masks are on the first device, not on that of the input      | test_conformance: masks_of_gyro
every p becomes .5                                           | here: p_and_mode
the replacement is in training mode                          | here: p_and_mode
a Dropout at the root stays                                  | here: a_root
arguments in another order are taken without a word          | here: arguments
"500ba" counts as 500 epochs                                 | here: a_plan, 500_batches
a part of a batch counts as an iteration                     | here: a_batch_in_parts
training that is resumed goes on otherwise                   | test_methods_resume; here: the plan
a second fit warns that there is no effect                   | here: what_was_done_before
remainders are cut off, wide layers skipped                  | here: wide_layers
the scale: 1 / (1 - p), or 1 / what is kept in fact          | here: both can be had
surgery loses mode, dtype, device, hooks, optimizers         | test_surgery
models must be of a certain class                            | here: the_trainer_of_the_seed
no optimizer given: one is taken without a word              | here: the_trainer_of_the_seed
checkpoints execute what they load, or are torn by a crash   | test_trainer_resume
"""

import warnings

import numpy as np
import pytest

import minima as mi
import minima.functional as cf
from minima import nn, optim
from minima.algorithms import GyroDropout, NoEffectWarning
from minima.autograd import Tensor
from minima.data import DataLoader, TensorDataset
from minima.random import Generator
from minima.trainer import Trainer


def loader(n=20, batch_size=5, **options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 6)).astype("float32"), rng.integers(0, 3, n)
    return DataLoader(TensorDataset(x, y), batch_size, **options)


def network(p=0.3):
    mi.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Dropout(p), nn.Sequential(nn.Dropout(0.9)), nn.Linear(8, 3)
    )


def gyro(model):
    return [module for module in nn.Module.modules(model) if isinstance(module, nn.GyroDropout)]


def make(method=None, duration="3ep", data=None, model=None, **settings):
    "A Trainer, and the schedule of its model."
    model, method = model or network(), method or GyroDropout(16, 4)
    settings = dict(optimizers=optim.SGD(model.parameters(), lr=0.1), progress_bar=False) | settings
    trainer = Trainer(model, data or loader(), max_duration=duration, algorithms=method, **settings)
    return trainer, gyro(trainer.state.model)[0].schedule


# ---- as the seed has it ----


def test_the_trainer_of_the_seed_runs_as_it_is_written(capsys):
    model, train_dataloader, eval_dataloader = network(), loader(), loader(10)

    from minima.trainer import Trainer
    from minima.algorithms import GyroDropout

    trainer = Trainer(model=model,
                      train_dataloader=train_dataloader,
                      eval_dataloader=eval_dataloader,
                      max_duration='100ep',
                      algorithms=[GyroDropout(512, 4, 196)])  # fmt: skip

    trainer.fit()
    schedule = gyro(model)[0].schedule
    assert (schedule.sigma, schedule.tau, schedule.iterations) == (512, 4, 196 * 100)
    assert schedule.period == 153 and schedule.iteration == 399
    assert len(trainer.history["epoch"]) == 100
    assert "AdamW" in capsys.readouterr().out


# ---- arguments ----


@pytest.mark.parametrize(
    "args, options, error, words",
    [
        ((0.5, 256, 16), {}, TypeError, r"got 0.5, 256, 16. .*GyroDropout\(p=0.5, sigma=256"),
        ((1.0,), {}, TypeError, "by position, the arguments are sigma, tau and max_iteration"),
        ((4, 512), {}, ValueError, "exchanged.* Write sigma=512, tau=4"),
        ((512.0,), {}, TypeError, "sigma must be an int; got 512.0"),
        ((1.5,), {}, TypeError, "sigma must be an int; got 1.5"),
        ((0,), {}, ValueError, "sigma must be at least 1"),
        ((512, 4, 0.5), {}, TypeError, "max_iteration must be an int; got 0.5"),
        ((512, 4, 0), {}, ValueError, "max_iteration must be at least 1"),
        ((), {"max_epoch": 0}, ValueError, "max_epoch must be at least 1"),
        ((), {"schedule": "fair"}, ValueError, "a schedule is one of"),
        ((), {"p": 1.5}, ValueError, "GyroDropout expects a probability from 0 to 1"),
    ],
)
def test_arguments_that_look_exchanged(args, options, error, words):
    with pytest.raises(error, match=words):
        GyroDropout(*args, **options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"block": 0}, "block must be at least 1"),
        ({"scale": "exact"}, "a scale is one of"),
    ],
)
def test_what_layers_refuse_is_refused_when_the_trainer_is_made(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        make(GyroDropout(16, 4, **options))
    assert caught.value.__notes__ == ["This was GyroDropout at INIT, in epoch 1, batch 1."]


# ---- the plan ----


@pytest.mark.parametrize("n, drop_last", [(20, False), (18, False), (18, True), (6, False)])
@pytest.mark.parametrize("duration", ["3ep", "5/2ep", "17ba", "33sp", "60sp", "61sp"])
def test_a_plan_is_what_happens(duration, n, drop_last):
    for data in (loader(n, drop_last=drop_last), [*loader(n, drop_last=drop_last)]):
        trainer, schedule = make(duration=duration, data=data)
        assert schedule.iterations == trainer.state.algorithms[0].iterations
        trainer.fit()
        close = 1 if n % 5 and "sp" in duration else 0
        assert abs(schedule.iterations - trainer.state.timestamp.batch) <= close
        assert schedule.iteration + 1 == trainer.state.timestamp.batch


def test_batches_of_all_sizes_have_samples_that_can_be_counted():
    data, own = loader(12).dataset, Generator(1)
    lists = DataLoader(data, batch_sampler=[[0, 1], [2, 3, 4, 5, 6], [7, 8, 9, 10, 11]])
    assert make(duration="24sp", data=lists)[1].iterations == 6
    shuffled = DataLoader(data, 5, shuffle=True, generator=own)
    before = own.get_state()
    assert make(duration="24sp", data=shuffled)[1].iterations == 6 and own.get_state() == before


def test_500_batches_are_not_500_epochs():
    trainer, schedule = make(duration="500ba")
    assert schedule.iterations == 500 and type(schedule.iterations) is int
    assert make(GyroDropout(16, 4, 196), "500ba")[1].iterations == 500


@pytest.mark.parametrize(
    "method, duration, iterations",
    [
        (dict(max_iteration=196), "10ep", 1960),
        (dict(max_iteration=196), "40sp", 392),  # two epochs
        (dict(max_iteration=196, max_epoch=3), "10ep", 588),
        (dict(max_epoch=3), "30sec", 12),
        (dict(max_epoch=3), None, 12),
    ],
)
def test_what_is_said_goes_before_what_is_seen(method, duration, iterations):
    trainer, schedule = make(GyroDropout(16, 4, **method), duration)
    trainer.fit("1ba")
    assert schedule.iterations == iterations


def test_seconds_cannot_be_planned():
    with pytest.raises(ValueError, match=r"in 30sec depends on the machine; .*max_epoch=100"):
        make(duration="30sec")


def test_without_a_duration_the_first_fit_is_planned():
    trainer, schedule = make(duration=None)
    assert trainer.state.algorithms[0].state_dict() == {"iterations": None, "begun": None}
    assert schedule.iterations == 1
    trainer.fit("2ep")
    assert schedule.iterations == 8
    trainer.fit("2ep")
    assert schedule.iterations == 8 and schedule.iteration == 15


@pytest.mark.parametrize("steps", [["1ba", "2ba"], ["0.5dur"], ["3ep", "20ba"]])
def test_the_plan_stays(steps):
    trainer, schedule = make()
    for step in steps:
        trainer.fit(step)
        assert schedule.iterations == 12
    assert schedule.iteration + 1 == trainer.state.timestamp.batch


def test_a_checkpoint_brings_its_plan(tmp_path):
    first, _ = make(duration="3ep", save_folder=tmp_path)
    first.fit()
    longer, schedule = make(duration="9ep", load_path=tmp_path)
    assert schedule.iterations == 12 and schedule.iteration == 11
    longer.fit()
    first.fit("6ep")
    for path, ours in longer.state.model.state_dict().items():
        assert np.array_equal(ours, first.state.model.state_dict()[path]), path


def test_a_checkpoint_without_a_plan_leaves_one_to_be_made(tmp_path):
    path = make(duration=None)[0].save_checkpoint(tmp_path / "early.safetensors")
    trainer, schedule = make(duration="3ep", load_path=path)
    assert trainer.state.algorithms[0].iterations is None and schedule.iterations == 12
    trainer.fit()
    assert trainer.state.algorithms[0].iterations == schedule.iterations == 12


def test_a_trainer_that_only_evaluates_needs_no_plan():
    trainer = Trainer(
        network(), None, loader(), "3ep", algorithms=GyroDropout(), progress_bar=False
    )
    assert trainer.eval()["accuracy"] <= 1


# ---- iterations ----


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_a_batch_in_parts_is_one_iteration(parts):
    trainer, schedule = make(grad_accumulation=parts)
    trainer.fit()
    assert schedule.iteration == 11 and trainer.state.timestamp.batch == 12


def test_an_iteration_begins_before_its_batch():
    seen = []

    class Note:
        def after_forward(self, state):
            seen.append((state.timestamp.batch, schedule.iteration))

    trainer, schedule = make(callbacks=Note(), grad_accumulation=2, eval_dataloader=loader())
    trainer.fit()
    assert seen == [(t // 2, t // 2) for t in range(24)]


@pytest.mark.parametrize("event", ["after_forward", "after_backward", "batch_end", "epoch_end"])
def test_a_batch_that_comes_again_after_an_error_is_one_iteration(event, tmp_path):
    class Fault:
        def fail(self, state):
            if state.timestamp.batch >= 6:
                raise OSError("no connection")

    setattr(Fault, event, Fault.fail)
    trainer, _ = make(callbacks=Fault(), grad_accumulation=2)
    with pytest.raises(OSError):
        trainer.fit()
    path = trainer.save_checkpoint(tmp_path / "after.safetensors")
    trainer.state.callbacks.clear()
    resumed, _ = make(load_path=path)
    for goes_on in (trainer, resumed):
        goes_on.fit()
        schedule = gyro(goes_on.state.model)[0].schedule
        assert schedule.iteration + 1 == goes_on.state.timestamp.batch == 12


def test_a_checkpoint_of_the_batch_that_failed_begins_it_anew(tmp_path):
    class Fault:
        def after_forward(self, state):
            if state.timestamp.batch == 6:
                raise OSError("no connection")

    trainer, schedule = make(callbacks=Fault(), save_folder=tmp_path, save_interval="1ba")
    with pytest.raises(OSError):
        trainer.fit()
    assert schedule.iteration == 6
    trainer.load_checkpoint(tmp_path)
    assert schedule.iteration == 5 and trainer.state.timestamp.batch == 6
    trainer.state.callbacks.clear()
    trainer.fit()
    assert schedule.iteration == 11


@pytest.mark.parametrize(
    "n, batch_size, tau", [(9, 4, 4), (9, 8, 4), (4, 1, 4), (9, 2, 8), (7, 7, 3)]
)
def test_batches_of_any_size(n, batch_size, tau):
    trainer, schedule = make(GyroDropout(16, tau), data=loader(n, batch_size), lint=False)
    trainer.fit()
    assert np.isfinite(trainer.history["loss"]).all()
    assert schedule.iteration + 1 == trainer.state.timestamp.batch


def test_fewer_iterations_than_subnetworks():
    trainer, schedule = make(GyroDropout(512, 4), "1ba")
    trainer.fit()
    assert schedule.period == 1


# ---- what is replaced, and how often ----


def test_what_was_done_before_is_neither_done_again_nor_lamented(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer, schedule = make(save_folder=tmp_path)
        drops = gyro(trainer.state.model)
        trainer.fit()
        trainer.fit("1ep")
        again, same = make(model=trainer.state.model, load_path=tmp_path)
        again.fit("1ep")
    assert gyro(again.state.model) == drops and same is schedule
    assert schedule.iteration + 1 == again.state.timestamp.batch == 20


@pytest.mark.parametrize("other", [dict(sigma=32), dict(tau=2), dict(schedule="balanced")])
def test_who_wants_something_else_is_told_that_it_stays(other):
    model = make()[0].state.model
    with pytest.warns(NoEffectWarning, match=r"already, with GyroSchedule\(sigma=16") as caught:
        make(GyroDropout(**{"sigma": 16, "tau": 4} | other), model=model)
    assert caught[0].filename == __file__


def test_a_model_that_the_function_was_applied_to_is_taken_over():
    model = cf.apply_gyro_dropout(network(), 1, 1, sigma=16, tau=4)
    trainer, schedule = make(model=model, grad_accumulation=5)
    trainer.fit()
    assert (schedule.iterations, schedule.iteration) == (12, 11)


def test_new_dropouts_beside_old_layers_are_replaced():
    model = make()[0].state.model
    model.append(nn.Sequential(nn.Dropout(0.1)))
    trainer, _ = make(model=model)
    trainer.fit()
    assert [drop.p for drop in gyro(model)] == [0.3, 0.9, 0.1]
    assert [drop.schedule.iteration for drop in gyro(model)] == [11, 11, 11]


def test_nothing_to_do_is_said_where_the_trainer_is_made():
    model = nn.Sequential(nn.Linear(6, 3))
    with pytest.warns(NoEffectWarning, match="there is no Dropout, so the model") as caught:
        trainer = Trainer(
            model, loader(), max_duration=1, algorithms=GyroDropout(), progress_bar=False
        )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        trainer.fit()


def test_settings_have_defaults():
    model = make(GyroDropout())[0].state.model
    assert [(drop.block, drop.scale) for drop in gyro(model)] == [(1, "expected")] * 2
    sizes = "sigma=256, tau=16, iterations=12, order='random'"
    assert {repr(drop.schedule) for drop in gyro(model)} == {f"GyroSchedule({sizes})"}
    assert make(GyroDropout(1, 1))[1].period == 12


def test_settings_reach_the_layers():
    mi.manual_seed(3)  # and none of these draws is from there
    own = Generator(7)
    settings = dict(block=2, schedule="balanced", scale="measured", shared=False, generator=own)
    model = make(GyroDropout(16, 4, **settings))[0].state.model
    assert [drop.key.tolist() for drop in gyro(model)] == [[7, 1], [7, 3]]
    for drop in gyro(model):
        assert (drop.block, drop.scale, drop.schedule.order) == (2, "measured", "balanced")


def test_optimizers_follow():
    class Learned(nn.Dropout):
        def __init__(self):
            self.p, self.generator, self.weight = 0.5, None, nn.Parameter(np.ones(3))

    model = nn.Sequential(nn.Linear(6, 3), Learned())
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    make(model=model, optimizers=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [*map(id, model.parameters())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p, kept", [(None, [0.3, 0.9]), (0.25, [0.25, 0.25])])
def test_p_and_mode_are_kept(p, kept, training):
    trainer, schedule = make(GyroDropout(16, 4, p=p), model=network().train(training))
    drops = gyro(trainer.state.model)
    assert [drop.p for drop in drops] == kept
    assert all(drop.training is training for drop in drops)
    assert drops[0].schedule is drops[1].schedule


def test_a_root_is_replaced_in_the_trainer():
    trainer = Trainer(nn.Dropout(0.4), algorithms=GyroDropout(8, 2), progress_bar=False)
    assert type(trainer.state.model) is nn.GyroDropout and trainer.state.model.p == 0.4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_no_dtype_is_changed(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = cf.apply_gyro_dropout(network().to(dtype=dtype), 10, sigma=8, tau=4)
    for drop in gyro(model):
        y = drop(mi.ones(5, 8, dtype=dtype))
        assert y.dtype == dtype and drop.key.dtype == drop.schedule.state.dtype == "uint64"
    assert model(mi.ones(5, 6, dtype=dtype)).dtype == dtype


def test_wide_layers_and_remainders_are_masked():
    drop = nn.GyroDropout(10, sigma=4, tau=3, schedule="balanced")
    y = drop(mi.ones(7, 2, 300_001)).numpy()
    assert [sum(row.tobytes() == other.tobytes() for other in y) for row in y] == [3] * 3 + [2] * 4
    assert all(0.49 < (row == 0).mean() < 0.51 for row in y)


# ---- one crowd, or one for each layer ----


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("door", ["function", "class"])
def test_schedules_are_shared_or_each_layer_has_its_own(door, shared):
    mi.manual_seed(1)
    if door == "class":
        model = make(GyroDropout(64, 4, shared=shared))[0].state.model
    else:
        model = cf.apply_gyro_dropout(network(), 4, 3, sigma=64, tau=4, shared=shared)
    first, second = (drop.schedule for drop in gyro(model))
    assert (first is second) == shared and first.iterations == second.iterations == 12
    agree = [first.chosen(t) == second.chosen(t) for t in range(12)]
    assert all(agree) if shared else not any(agree)
    if door == "class":
        make(model=model, method=GyroDropout(64, 4))[0].fit()
    else:
        for x, _ in list(loader()) * 3:
            model(x)
    assert first.iteration == second.iteration == 11


# ---- the scale ----


@pytest.mark.parametrize("shape", [(12, 40), (6, 3, 5), (4, 7)])
@pytest.mark.parametrize("p", [0.5, 0.2])
def test_the_measured_scale_keeps_the_mean_of_each_iteration(p, shape):
    layers = [
        nn.GyroDropout(20, 1, p, 40, 2, scale=scale, generator=Generator(3))
        for scale in ("measured", "expected")
    ]
    means = []
    for t in range(20):
        measured, expected = (layer(mi.ones(*shape, dtype="float64")).numpy() for layer in layers)
        assert np.array_equal(measured != 0, expected != 0)
        kept = layers[0].masks(layers[0].schedule.chosen(t), shape[1:])
        assert np.allclose(measured[measured != 0] * kept.mean(), 1, rtol=1e-15, atol=0)
        means.append(expected.mean())
    assert np.ptp(means) > 0.05


@pytest.mark.parametrize("shape", [(0, 7), (4, 0), (0,)])
def test_nothing_is_measured(shape):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nn.GyroDropout(9, 1, 0.5, 8, 2, scale="measured")(mi.ones(*shape)).shape == shape


def test_a_single_neuron_is_kept_as_it_is_or_not_at_all():
    layer = nn.GyroDropout(40, 1, 0.5, 20, 1, scale="measured", generator=Generator(0))
    assert {value for _ in range(40) for value in layer(mi.ones(3)).tolist()} == {0, 1}


def test_a_mask_that_keeps_nothing_gives_zeros():
    layer = nn.GyroDropout(9, 1, 1.0, 8, 2, scale="measured")
    assert not layer(mi.ones(4, 3)).numpy().any()
    assert "scale='measured'" in repr(layer)


def test_a_pair_has_the_scale_of_its_dropout():
    mi.manual_seed(0)
    drop = nn.GyroDropout(9, 1, 0.5, 8, 2, block=4, scale="measured", generator=Generator(3))
    drop.schedule.clock = "hand"
    layers = nn.Linear(6, 32), nn.ReLU(), drop, nn.Linear(32, 3)
    x = Tensor(np.random.default_rng(0).normal(size=(10, 6)), dtype="float32")
    pair, row = nn.GyroSequential(*layers), nn.Sequential(*layers)
    measured = pair(x).data.numpy()
    assert np.allclose(measured, row(x).data, rtol=1e-5, atol=1e-6)
    drop.scale = "expected"
    assert not np.allclose(measured, pair(x).data, rtol=1e-2)
