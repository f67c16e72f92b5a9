"Schedules, rate by rate and momentum by momentum beside PyTorch; what can be told early."

import json
import warnings
from math import inf, nan

import numpy as np
import pytest

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima import optim
from minima.autograd import tensor
from minima.optim import SGD, AdaGrad, Adam
from minima.optim import ChainedScheduler as Chained
from minima.optim import CosineAnnealingLR as Cosine
from minima.optim import ExponentialLR as Exponential
from minima.optim import LinearLR as Linear
from minima.optim import (
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)


def inverse(t):
    return 1 / (1 + t)


def step(t):
    return 0.5 ** (t // 10)


SCHEDULES = [
    ("StepLR", dict(step_size=30)),
    ("StepLR", dict(step_size=1, gamma=0.9)),
    ("StepLR", dict(step_size=7, gamma=1.5)),
    ("MultiStepLR", dict(milestones=[30, 80])),
    ("MultiStepLR", dict(milestones=[5, 5, 3, 70], gamma=0.7)),
    ("MultiStepLR", dict(milestones=[0, 4], gamma=0.5)),
    ("MultiStepLR", dict(milestones=[], gamma=0.5)),
    ("ExponentialLR", dict(gamma=0.97)),
    ("ExponentialLR", dict(gamma=1.0)),
    ("LambdaLR", dict(lr_lambda=inverse)),
    ("LambdaLR", dict(lr_lambda=[inverse, step])),
    ("LinearLR", {}),
    ("LinearLR", dict(start_factor=0.1, total_iters=40)),
    ("LinearLR", dict(start_factor=1.0, end_factor=0.25, total_iters=60)),
    ("LinearLR", dict(start_factor=0.5, end_factor=0.0, total_iters=99)),
    ("CosineAnnealingLR", dict(T_max=100)),
    ("CosineAnnealingLR", dict(T_max=100, eta_min=0.001)),
    ("CosineAnnealingLR", dict(T_max=10, eta_min=0.01)),
    ("CosineAnnealingLR", dict(T_max=1)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100)),
    ("OneCycleLR", dict(max_lr=[0.5, 2.0], epochs=5, steps_per_epoch=21)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100, anneal_strategy="linear", pct_start=0.5)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100, three_phase=True)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=103, three_phase=True, anneal_strategy="linear",
                        pct_start=0.21, div_factor=3.0, final_div_factor=7.0)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100, cycle_momentum=False)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100, base_momentum=[0.1, 0.2],
                        max_momentum=[0.5, 0.9])),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100, pct_start=0.0)),
    ("OneCycleLR", dict(max_lr=0.5, total_steps=100, pct_start=0.99)),
]  # fmt: skip


def label(value):
    "A row of a table, named."
    if isinstance(value, dict):
        text = ((k, getattr(v, "__name__", v)) for k, v in value.items())
        return ",".join(f"{k}={v}" for k, v in text) or "defaults"
    return getattr(value, "__name__", str(value))


def ours(kind="SGD", rates=(0.1, 0.8)):
    "An optimizer with one parameter in each of two groups."
    groups = [{"params": [tensor([1.0], requires_grad=True)], "lr": lr} for lr in rates]
    return getattr(optim, kind)(groups, **({"momentum": 0.9} if kind == "SGD" else {}))


def of_torch(torch, kind="SGD", rates=(0.1, 0.8)):
    "The same, of torch."
    groups = [{"params": [torch.ones(1, requires_grad=True)], "lr": lr} for lr in rates]
    return getattr(torch.optim, kind)(groups, **({"momentum": 0.9} if kind == "SGD" else {}))


def settings(optimizer):
    "The rate and the momentum of each group."
    for group in optimizer.param_groups:
        yield group["lr"]
        yield group["betas"][0] if "betas" in group else group["momentum"]


class Pair:
    "An optimizer here and one in torch, each with the same schedule."

    def __init__(self, torch, make, kind="SGD"):
        self.optimizers = ours(kind), of_torch(torch, kind)
        spaces = optim, torch.optim.lr_scheduler
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.schedules = [make(s, o) for s, o in zip(spaces, self.optimizers)]
        self.agree()

    def agree(self):
        "Rates and momenta are equal, but for the last digits."
        mine, theirs = (list(settings(o)) for o in self.optimizers)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-16)
        mine, theirs = (s.get_last_lr() for s in self.schedules)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-16)
        assert mine == [group["lr"] for group in self.optimizers[0].param_groups]

    def step(self, steps=1, *measures):
        "Step both `steps` times, and compare."
        for _ in range(steps):
            for optimizer, schedule in zip(self.optimizers, self.schedules):
                optimizer.step()
                schedule.step(*measures)
            self.agree()


def maker(name, arguments):
    "A function that makes this schedule, here or in torch."
    return lambda space, o: getattr(space, name)(o, **arguments)


# ---- the same rates as torch's ----


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize("name, arguments", SCHEDULES, ids=label)
def test_a_hundred_rates_and_momenta_are_those_of_torch(torch, name, arguments, kind):
    pair = Pair(torch, maker(name, arguments), kind)
    pair.step(100)


@pytest.mark.parametrize("last", [0, 1, 4, 9, 29])
@pytest.mark.parametrize("name, arguments", SCHEDULES, ids=label)
def test_going_on_after_a_given_step_is_as_in_torch(torch, name, arguments, last):
    def make(space, o):
        schedule = getattr(space, name)(o, **arguments)
        for _ in range(last):
            schedule.step()
        return getattr(space, name)(o, **arguments, last_epoch=last)

    Pair(torch, make).step(40)


@pytest.mark.parametrize("name, arguments", SCHEDULES, ids=label)
def test_rates_changed_by_hand_go_on_as_in_torch(torch, name, arguments):
    pair = Pair(torch, maker(name, arguments))
    pair.step(12)
    for optimizer in pair.optimizers:
        optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.param_groups[1]["lr"] = 0.3
    pair.step(30)


TOGETHER = [
    lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=9), s.StepLR(o, 20)], [10]),
    lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=5), s.CosineAnnealingLR(o, 95, 0.01)], milestones=[5]
    ),
    lambda s, o: s.SequentialLR(
        o,
        [s.ExponentialLR(o, 0.9), s.ExponentialLR(o, 0.8), s.LambdaLR(o, inverse)],
        milestones=[10, 30],
    ),
    lambda s, o: s.SequentialLR(o, [s.StepLR(o, 3), s.LinearLR(o, 0.5)], milestones=[0]),
    lambda s, o: s.SequentialLR(o, [s.StepLR(o, 3), s.LinearLR(o), s.StepLR(o, 2)], [9, 9]),
    lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o), s.OneCycleLR(o, 2.0, 60), s.MultiStepLR(o, [0, 5])], milestones=[20, 50]
    ),
    lambda s, o: s.SequentialLR(o, [s.ExponentialLR(o, 0.9)], milestones=[]),
    lambda s, o: s.ChainedScheduler([s.LinearLR(o, 0.1, total_iters=4), s.ExponentialLR(o, 0.9)]),
    lambda s, o: s.ChainedScheduler([s.ExponentialLR(o, 0.9), s.CosineAnnealingLR(o, 50)], o),
    lambda s, o: s.ChainedScheduler([s.StepLR(o, 9, 0.5), s.MultiStepLR(o, [4, 18], 0.5)]),
    lambda s, o: s.ChainedScheduler(
        [
            s.SequentialLR(o, [s.LinearLR(o, 0.1), s.ExponentialLR(o, 0.99)], [5]),
            s.StepLR(o, 11),
        ]
    ),
]


@pytest.mark.parametrize("make", TOGETHER, ids=range(len(TOGETHER)))
def test_schedules_of_schedules_are_as_in_torch(torch, make):
    Pair(torch, make).step(70)


PLATEAUS = [
    {},
    dict(patience=0),
    dict(patience=2, factor=0.5, cooldown=3),
    dict(mode="max", patience=1),
    dict(threshold=0.2, patience=2, factor=0.7),
    dict(threshold=0.2, threshold_mode="abs", patience=2, factor=0.7),
    dict(mode="max", threshold=0.2, threshold_mode="abs", patience=1, factor=0.7),
    dict(mode="max", threshold=0.2, patience=1, factor=0.7),
    dict(patience=1, min_lr=0.01, factor=0.3),
    dict(patience=1, min_lr=[0.05, 0.2], factor=0.3),
    dict(patience=0, eps=0.01, factor=0.5),
]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("arguments", PLATEAUS, ids=label)
def test_plateaus_are_noticed_as_in_torch(torch, arguments, sign):
    rng = np.random.default_rng(0)
    pair = Pair(torch, maker("ReduceLROnPlateau", arguments))
    for t in range(100):
        measure = sign * float(1 / (1 + t) + 0.1 * rng.normal())
        pair.step(1, nan if t % 17 == 16 else inf if t % 23 == 22 else measure)


def test_a_plateau_takes_a_tensor():
    schedule = ReduceLROnPlateau(ours(), patience=0)
    for _ in range(2):
        schedule.step(tensor([2.0], requires_grad=True).sum())
    assert schedule.get_last_lr() == pytest.approx([0.01, 0.08]) and schedule.best == 2


# ---- states ----


def plain(state):
    "Whether a state is made of what can be saved as text."
    return json.loads(json.dumps(state)) is not None


@pytest.mark.parametrize("direction", ["to torch", "from torch", "here"])
@pytest.mark.parametrize("name, arguments", SCHEDULES, ids=label)
def test_states_move_to_and_from_torch(torch, name, arguments, direction):
    pair = Pair(torch, maker(name, arguments))
    pair.step(23)
    states = [(o.state_dict(), s.state_dict()) for o, s in zip(pair.optimizers, pair.schedules)]
    assert plain(states[0][1])
    other = Pair(torch, maker(name, arguments))
    for i, source in {"to torch": [(1, 0)], "from torch": [(0, 1)], "here": [(0, 0)]}[direction]:
        other.optimizers[i].load_state_dict(states[source][0])
        other.schedules[i].load_state_dict(states[source][1])
        other.optimizers = [other.optimizers[i] if i == 0 else pair.optimizers[0],
                            other.optimizers[i] if i == 1 else pair.optimizers[1]]  # fmt: skip
        other.schedules = [other.schedules[i] if i == 0 else pair.schedules[0],
                           other.schedules[i] if i == 1 else pair.schedules[1]]  # fmt: skip
    other.step(60)


@pytest.mark.parametrize("make", TOGETHER, ids=range(len(TOGETHER)))
def test_states_of_schedules_of_schedules_resume(make):
    optimizer, other = ours(), ours()
    schedule, resumed = make(optim, optimizer), make(optim, other)
    for _ in range(8):
        schedule.step()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(saved := schedule.state_dict())
    before = json.dumps(saved)
    for _ in range(45):
        schedule.step()
        resumed.step()
        assert list(settings(optimizer)) == list(settings(other))
    assert json.dumps(saved) == before  # a copy


def test_the_state_of_a_plateau_resumes(torch):
    optimizer, other = ours(), ours()
    schedule, resumed = (ReduceLROnPlateau(o, patience=2, cooldown=1) for o in (optimizer, other))
    measures = np.random.default_rng(0).normal(size=40).tolist()
    for measure in measures[:20]:
        schedule.step(measure)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for measure in measures[20:]:
        schedule.step(measure)
        resumed.step(measure)
        assert list(settings(optimizer)) == list(settings(other))
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(of_torch(torch))
    schedule.load_state_dict(theirs.state_dict())
    assert schedule.best == inf and schedule.patience == 10


def test_objects_that_can_be_called_are_saved_and_functions_are_not():
    class Decay:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, t):
            return self.factor**t

    schedule = LambdaLR(ours(), [Decay(0.5), inverse])
    state = schedule.state_dict()
    assert state["lr_lambdas"] == [{"factor": 0.5}, None]
    other = LambdaLR(ours(), [Decay(0.9), inverse])
    other.load_state_dict(state)
    other.step()
    assert other.get_last_lr() == [0.05, 0.4]


@pytest.mark.parametrize("make, state, message", [
    (lambda o: StepLR(o, 3), Exponential(ours(), 0.5).state_dict(), r"lacks \['step_size'\]"),
    (lambda o: StepLR(o, 3), {}, "lacks .*'last_epoch'.*StepLR"),
    (lambda o: Chained([StepLR(o, 3)]), {}, "of 0 schedules; this has 1"),
    (lambda o: Chained([StepLR(o, 3)]), {"_last_lr": [1], "_schedulers": [{}]}, "lacks"),
])  # fmt: skip
def test_a_state_that_does_not_fit_is_refused_whole(make, state, message):
    schedule = make(ours())
    before = repr(schedule.state_dict())
    with pytest.raises(ValueError, match=message):
        schedule.load_state_dict(state)
    assert repr(schedule.state_dict()) == before


# ---- what ours does besides ----


def test_schedules_of_schedules_may_be_nested():
    def nested(o):
        warm = Chained([Linear(o, 0.5, total_iters=2), StepLR(o, 3, 0.5)])
        late = SequentialLR(o, [Exponential(o, 0.5), Exponential(o, 0.1)], [2])
        return SequentialLR(o, [warm, late, Chained([Exponential(o, 0.5)])], [5, 9])

    optimizer, seen = ours(rates=(1.0,)), []
    schedule = nested(optimizer)
    for _ in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    expected = [0.5, 0.75, 1, 0.5, 0.5, 1, 0.5, 1, 0.1, 1, 0.5, 0.25]
    assert seen == pytest.approx(expected)


@pytest.mark.parametrize("make, expected", [
    (lambda o: StepLR(o, 2, 0.5), [0.05, 0.4, 0.5]),
    (lambda o: Cosine(o, 2), [0.0, 0.0, 0.0]),
])  # fmt: skip
def test_groups_that_are_added_later_are_scheduled_from_then_on(make, expected):
    optimizer = ours()
    schedule = make(optimizer)
    schedule.step()
    optimizer.add_param_group({"params": [tensor([1.0], requires_grad=True)], "lr": 1.0})
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx(expected, abs=1e-15)


def test_a_group_without_a_function_is_told():
    optimizer = ours()
    schedule = LambdaLR(optimizer, inverse)
    optimizer.add_param_group({"params": [tensor([1.0], requires_grad=True)], "lr": 1.0})
    with pytest.raises(ValueError, match="group 2 was added later: append"):
        schedule.step()
    assert schedule.last_epoch == 0 and optimizer.param_groups[0]["lr"] == 0.1
    schedule.lr_lambdas.append(step)
    schedule.step()
    assert schedule.get_last_lr() == [0.05, 0.4, 1.0]


def test_a_plateau_lowers_groups_that_are_added_later_unless_each_has_a_bound_of_its_own():
    for least in (0.0, [0.0, 0.0]):
        optimizer = ours()
        schedule = ReduceLROnPlateau(optimizer, patience=0, min_lr=least)
        optimizer.add_param_group({"params": [tensor([1.0], requires_grad=True)], "lr": 1.0})
        schedule.step(1.0)
        if least == 0:
            schedule.step(1.0)
            assert schedule.get_last_lr() == pytest.approx([0.01, 0.08, 0.1])
        else:
            with pytest.raises(RuntimeError, match="has 3 groups, and had 2"):
                schedule.step(1.0)


def test_a_rate_of_the_beginning_stays_in_the_group():
    optimizer = ours()
    schedule = Linear(optimizer, 0.5)
    schedule.step()
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, 0.8]
    assert schedule.base_lrs == [0.1, 0.8]


def test_a_cycle_that_is_over_is_told_and_nothing_moves():
    optimizer = ours()
    schedule = OneCycleLR(optimizer, 1.0, 3)
    for _ in range(3):
        schedule.step()
    before = list(settings(optimizer)), schedule.last_epoch
    for _ in range(2):
        with pytest.raises(ValueError, match=r"Tried to step 4 times.*total steps is 3"):
            schedule.step()
    assert before == (list(settings(optimizer)), schedule.last_epoch)


@pytest.mark.parametrize("pct_start", [0.5, 1.0])
def test_a_phase_may_be_empty(pct_start):
    optimizer = ours()
    schedule = OneCycleLR(optimizer, 1.0, 2, pct_start=pct_start)
    schedule.step()
    assert all(np.isfinite(value) for value in settings(optimizer))


def test_what_get_last_lr_gives_is_a_copy():
    schedule = StepLR(ours(), 3)
    schedule.get_last_lr()[0] = 7
    assert schedule.get_last_lr() == [0.1, 0.8]


def test_a_schedule_of_ones_own_is_one_function():
    class Harmonic(LRScheduler):
        def rate(self, i, lr, t, first):
            return self.base_lrs[i] / (1 + t)

    schedule = Harmonic(ours())
    schedule.step()
    assert schedule.get_last_lr() == [0.05, 0.4]
    with pytest.raises(NotImplementedError, match=r"LRScheduler has no rate"):
        LRScheduler(ours())


# ---- what can be told early ----


def mixed(space, o, other):
    return space.SequentialLR(o, [space.StepLR(o, 3), space.StepLR(other, 3)], [3])


@pytest.mark.parametrize("make, message", [
    (lambda s, o, p: s.StepLR([1.0], 3), "list is not an Optimizer"),
    (lambda s, o, p: s.OneCycleLR(None, 3), "NoneType is not an Optimizer"),
    (lambda s, o, p: s.ReduceLROnPlateau(None), "NoneType is not an Optimizer"),
    (lambda s, o, p: s.StepLR(o, 3, last_epoch=2), "param 'initial_lr' is not specified"),
    (lambda s, o, p: s.LinearLR(o, 0.0), "Starting multiplicative factor expected"),
    (lambda s, o, p: s.LinearLR(o, 1.1), "Starting multiplicative factor expected"),
    (lambda s, o, p: s.LinearLR(o, 1, -0.1), "Ending multiplicative factor expected"),
    (lambda s, o, p: s.LambdaLR(o, [inverse]), "xpected 2 .*lr_lambda.*got 1"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0), "You must define either total_steps OR"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, epochs=3), "You must define either total_steps OR"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, 0), "Expected positive integer total_steps, but got 0"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, 2.5), "Expected positive integer total_steps, but"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, None, 0, 3), "Expected positive integer epochs, but"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, None, 3, -1), "Expected positive integer steps_per_ep"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, 9, pct_start=1.5), "Expected float between 0 and 1 pct"),
    (lambda s, o, p: s.OneCycleLR(o, 1.0, 9, anneal_strategy="x"), "anneal_strategy must be one"),
    (lambda s, o, p: s.OneCycleLR(o, [1.0], 9), "xpected 2 values for max_lr.*got 1"),
    (lambda s, o, p: s.ReduceLROnPlateau(o, factor=1.0), "Factor should be < 1.0."),
    (lambda s, o, p: s.ReduceLROnPlateau(o, "mean"), "mode mean is unknown!"),
    (lambda s, o, p: s.ReduceLROnPlateau(o, threshold_mode="x"), "threshold mode x is unknown!"),
    (lambda s, o, p: s.ReduceLROnPlateau(o, min_lr=[0.1]), "xpected 2 .*min_lr.*got 1"),
    (mixed, "SequentialLR expects all schedulers to belong to the same optimizer"),
    (lambda s, o, p: s.SequentialLR(o, [s.StepLR(o, 3)], [3]), "number of schedulers provided"),
    (lambda s, o, p: s.SequentialLR(o, [], []), "SequentialLR expects at least one scheduler"),
    (lambda s, o, p: s.SequentialLR(o, [3.0], []), "should have `optimizer` as its attribute"),
    (lambda s, o, p: s.ChainedScheduler([]), "ChainedScheduler expects at least one scheduler"),
    (lambda s, o, p: s.ChainedScheduler([s.StepLR(o, 3), 1]), "should have `optimizer` as its"),
    (lambda s, o, p: s.ChainedScheduler([s.StepLR(o, 3), s.StepLR(p, 3)]), "the same optimizer"),
    (lambda s, o, p: s.ChainedScheduler([s.ReduceLROnPlateau(o)]), "does not support `ReduceLR"),
    (lambda s, o, p: s.SequentialLR(o, [s.ReduceLROnPlateau(o)], []), "does not support `Red"),
])  # fmt: skip
def test_what_makes_no_sense_is_told_as_in_torch(torch, make, message):
    spaces = optim, torch.optim.lr_scheduler
    found = []
    for space, new in zip(spaces, (ours, lambda: of_torch(torch))):
        with pytest.raises(Exception) as error:
            make(space, new(), new())
        found.append(error)
    assert type(found[0].value) is type(found[1].value)
    assert found[0].match(message) and len(str(found[0].value)) > 35


def test_momentum_that_cannot_be_cycled_is_told():
    optimizer = AdaGrad([tensor([1.0], requires_grad=True)])
    with pytest.raises(ValueError, match="AdaGrad has neither: say cycle_momentum=False"):
        OneCycleLR(optimizer, 0.1, 10)
    OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)


def test_a_training_with_a_schedule_is_that_of_torch(torch):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 2)), rng.normal(size=(60, 3, 2))
    p, t = tensor(start, requires_grad=True), torch.tensor(start, requires_grad=True)
    mine, theirs = Adam([p], lr=0.1), torch.optim.Adam([t], lr=0.1)
    pair = OneCycleLR(mine, 0.5, 60), torch.optim.lr_scheduler.OneCycleLR(theirs, 0.5, 60)
    for g in gradients:
        p.grad, t.grad = tensor(g), torch.tensor(g)
        for thing in (mine, theirs, *pair):
            thing.step()
        np.testing.assert_allclose(p.array, t.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_sgd_knows_momentum_even_if_it_has_none():
    optimizer = SGD([tensor([1.0], requires_grad=True)], lr=0.1)
    OneCycleLR(optimizer, 1.0, 10, cycle_momentum=True)
    assert optimizer.param_groups[0]["momentum"] == 0.95


def test_milestones_may_come_from_a_generator():
    schedule = MultiStepLR(ours(), (t for t in (1, 2)), 0.5)
    schedule.step()
    assert schedule.get_last_lr() == [0.05, 0.4]
