"What a captured function decides by, finds and leaves is what the function would."

import numpy as np
import pytest
from programs import skip_unless_fused
from test_capture import (
    OPTIMIZERS,
    Remembering,
    batches,
    crowd,
    equal,
    made,
    memory,
    numbers,
    reading,
    tiles,
)

import minima as mi
from minima import algorithms, nn, optim
from minima import operators as ops
from minima.autograd import checkpoint
from minima.capture import CaptureError
from minima.random import Generator

F, reading = nn.functional, reading  # a fixture, which runs all of this with kernels and without


def alike(make, steps=24, fuse=False, **settings):
    "Call what `make` makes as it is and captured; compare results, state and draws; the capture."
    (plain, wanted), (other, held) = (make() for _ in range(2))
    captured, generator = mi.capture(other, fuse=fuse, check=True, **settings), mi.manual_seed(1)
    same = near if fuse else equal
    for i in range(steps):
        x, state = mi.Tensor(numbers(6, 4, seed=i)), generator.get_state()
        expected, after = plain(x), generator.get_state()
        generator.set_state(state)
        assert same(captured(x), expected), f"the result of step {i}"
        assert generator.get_state() == after, f"draws of step {i}"
        for k, (a, b) in enumerate(zip(held(), wanted(), strict=True)):
            assert same(a, b), f"{k} of what is held after step {i}"
    return captured


def near(a, b):
    "Whether two Tensors, or None, are the same up to roundings."
    return a is b if a is None or b is None else np.allclose(a.array, b.array, rtol=1e-5, atol=1e-6)


FUSE = pytest.mark.parametrize("fuse", [False, True])


def fused(fuse):
    "`fuse`, where there is a compiler."
    if fuse:
        skip_unless_fused()
    return fuse


# ---- layers that decide, or count ----


def deep(*rates, **settings):
    "A model with stochastic depth."
    mi.manual_seed(0)
    blocks = [nn.Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh())) for _ in rates]
    model = nn.Sequential(*blocks, nn.Dropout(0.3), nn.Linear(4, 3))
    mi.functional.apply_stochastic_depth(model, 0.5, **settings)
    for block, p in zip(model, rates):
        block.p = p
    return model


DEEP = {  # and how many plans there are for it: a plan for each way that decisions may go
    "one block": (lambda: deep(0.5), 2),
    "three blocks": (lambda: deep(0.4, 0.5, 0.6), 8),
    "a generator of its own": (lambda: deep(0.5, 0.4, generator=Generator(4)), 4),
    "all is left out": (lambda: deep(1.0), 1),
    "nothing is": (lambda: deep(0.0), 1),
    "made again": (lambda: nn.Sequential(Remembering(deep(0.5, 0.4))), 4),
}


def stepping(model, make_optimizer=optim.Adam):
    "A step of training towards zero, and all that it changes."
    optimizer = make_optimizer(model.parameters())

    def step(x):
        optimizer.zero_grad()
        loss = ops.mean(model(x) ** 2)
        loss.backward()
        optimizer.step()
        return loss

    return step, lambda: memory(model, optimizer)


@FUSE
@pytest.mark.parametrize("name", DEEP)
def test_what_a_draw_decides_is_looked_at_before_a_replay(name, fuse):
    make, most = DEEP[name]
    momentum = lambda p: optim.SGD(p, lr=0.1, momentum=0.9)
    captured = alike(lambda: stepping(make(), momentum), 80, fused(fuse))
    before = captured.recordings
    assert (most == 1) == (before == 1)
    assert len(*captured.plans.values()) == min(most, captured.keep)


def test_what_was_left_out_has_no_gradient_and_rests():
    model = deep(0.5)
    step, _ = stepping(model, lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    captured, rested = mi.capture(step, fuse=False), 0
    for i in range(40):
        weight, x = model[0].fn[0].weight, mi.Tensor(numbers(6, 4, seed=i))
        before, draw = weight.array.copy(), mi.random.default_generator.get_state()
        captured(x)
        kept = algorithms.stochastic_depth._stays(0.5, *draw.values())
        assert (weight.grad is not None) == kept == (not np.array_equal(before, weight.array))
        rested += not kept
    assert 10 < rested < 30 and captured.recordings < 9


def test_with_more_ways_than_places_it_seldom_records():
    captured = alike(lambda: stepping(deep(*[0.5] * 6), optim.SGD), 150, keep=4)
    assert len(*captured.plans.values()) == 4
    assert captured.recordings <= 4 + 8  # after 1, 2, 4, 8, ... calls that found no plan


def test_the_ways_that_are_often_gone_stay():
    captured = alike(lambda: stepping(deep(*[0.05] * 6), optim.SGD), 100, keep=2)
    found = [
        [made.value for made, *_ in plan.decisions] for plan in captured.plans[[*captured.plans][0]]
    ]
    assert [True] * 6 in found


LAYERS = {
    "stochastic depth": lambda: deep(0.4, 0.5),
    "gyro, measured": lambda: with_four(crowd(scale="measured")[0]),
    "gyro, in tiles": lambda: with_four(tiles()[0]),
    "gyro, in tiles, measured": lambda: with_four(tiles(scale="measured", clock="layer")[0]),
    "batch norm": lambda: with_four(nn.Sequential(*made("batch norm, of all")())),
}


def with_four(model):
    "The `model` behind a layer that takes four numbers."
    return nn.Sequential(nn.Linear(4, 6), model)


@FUSE
@pytest.mark.parametrize("name", LAYERS)
def test_training_and_evaluation_take_turns(name, fuse):
    def make():
        mi.manual_seed(0)
        model = LAYERS[name]()
        step, held = stepping(model)
        predict = mi.no_grad()(lambda x: model(x))
        return model, step, predict, held

    (model, step, predict, held), (twin, plain, wanted_of, wanted) = make(), make()
    step, predict = (mi.capture(f, fuse=fused(fuse), check=True) for f in (step, predict))
    same, generator = near if fuse else equal, mi.manual_seed(1)
    for i in range(24):
        x, state = mi.Tensor(numbers(6, 4, seed=i)), generator.get_state()
        expected = plain(x)
        generator.set_state(state)
        assert same(step(x), expected), i
        model.eval(), twin.eval()
        assert same(predict(x), wanted_of(x)), i
        model.train(), twin.train()
        assert all(map(same, held(), wanted())), i
    assert predict.recordings == 1 or name == "stochastic depth"  # whose parameters move at first


def test_one_subnetwork_alone_inside():
    def make():
        mi.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.GyroDropout(4, 1, 0.5, 8, 2))

        def both(x):
            with algorithms.subnetwork(model, 1):
                alone = model(x)
            return (alone + model(x)).detach()

        return both, lambda: [*model.buffers()]

    assert alike(make).recordings == 1


# ---- random numbers ----

SAMPLES = {
    "normal": lambda x: x + mi.randn(6, 4),
    "uniform": lambda x: x * mi.rand(4, low=1.0, high=2.0),
    "like it": lambda x: x + mi.Tensor(mi.random.default_generator.normal(x.shape)),
    "of a generator": lambda x, g: x + mi.Tensor(g.uniform(4)),
    "integers": lambda x: x * mi.Tensor(mi.random.default_generator.integers(1, 5, 4)),
    "an order": lambda x: x[mi.Tensor(mi.random.default_generator.permutation(6))],
    "and dropout": lambda x: F.dropout(x + mi.randn(4), 0.5) + mi.randn(4),
    "made again": lambda x: checkpoint(lambda y: y * mi.randn(6, 4))(x),
}


@FUSE
@pytest.mark.parametrize("name", SAMPLES)
def test_random_arrays_are_drawn_in_each_replay(name, fuse):
    def make():
        w, g = mi.Tensor(numbers(6, 4), requires_grad=True), Generator(2)
        sample = SAMPLES[name]
        others = (g,) if name == "of a generator" else ()

        def f(x):
            w.grad = None
            y = sample(x * w, *others)
            ops.sum(y * y).backward()
            return y.detach()

        return f, lambda: [w.grad]

    assert alike(make, fuse=fused(fuse)).recordings == 1


SEEDS = {
    "a seed": lambda: mi.manual_seed(3),
    "a state": lambda: mi.random.default_generator.set_state({"seed": 0, "offset": 0}),
}


@pytest.mark.parametrize("name", SEEDS)
def test_setting_a_generator_is_refused(name):
    def f(x):
        SEEDS[name]()
        return F.dropout(x, 0.5)

    refused(f, "setting the state of a generator")


def test_forgetting_draws_is_refused():
    def f(x):
        with mi.random.fork_rng():
            return F.dropout(x, 0.5)

    refused(f, "setting the state of a generator")


def refused(f, why):
    "Whether `f` is refused, and leaves the default generator as it was."
    captured, x, generator = mi.capture(f), mi.Tensor(numbers(6, 4)), mi.manual_seed(0)
    generator.draw()
    captured(x)
    state = generator.get_state()
    for _ in range(2):
        with pytest.raises(CaptureError, match=why):
            captured(x)
        assert generator.get_state() == state


# ---- arrays that are there already ----

PLACED = {
    "Tensor": lambda x: mi.Tensor(x.detach(), device="cpu") * 2,
    "Tensor, by another name": lambda x: mi.Tensor(x.detach(), device="cpu:0") * 2,
    "Tensor, a dtype": lambda x: mi.Tensor(x.detach(), device="cpu", dtype="float64") * 2,
    "tensor": lambda x: mi.tensor(x.detach(), device=x.device) * 2,
    "to": lambda x: (x * 2).to("cpu"),
    "a shape": lambda x: x * np.shape(x)[0] * np.size(x) * np.ndim(x),
}


@pytest.mark.parametrize("name", PLACED)
def test_what_is_on_the_device_stays_there(name):
    assert alike(lambda: (PLACED[name], lambda: [])).recordings == 1


# ---- gradients ----


def gives(change, zero=False):
    "A function that changes the gradient of a parameter by `change(p, x)`, and steps."

    def make(make_optimizer):
        p = nn.Parameter(mi.Tensor(numbers(6, 4)))
        optimizer = make_optimizer([p])
        p.grad = mi.Tensor(numbers(6, 4, seed=1))

        def step(x):
            if zero:
                optimizer.zero_grad()
            change(p, x)
            if p.grad is not None:
                optimizer.step()
            return p.detach() * 1

        return step, lambda: [p, p.grad, *memory(nn.Module(), optimizer)]

    return make


HELD = mi.Tensor(numbers(6, 4, seed=3))


def backward(p, x):
    ops.sum(p * p * x).backward()


def assign_and_walk(p, x):
    p.grad = x * 1
    backward(p, x)


GRADIENTS = {  # and how often it is recorded
    "an argument": (gives(lambda p, x: setattr(p, "grad", x)), 1),
    "a piece of it": (gives(lambda p, x: setattr(p, "grad", x[:1] + x * 0)), 1),
    "a view of it": (gives(lambda p, x: setattr(p, "grad", ops.reshape(x, (6, 4)))), 1),
    "computed": (gives(lambda p, x: setattr(p, "grad", x * 2)), 1),
    "held": (gives(lambda p, x: setattr(p, "grad", HELD)), 1),
    "and added to": (gives(assign_and_walk), 1),
    "forgotten, then computed": (gives(backward, zero=True), 1),
    "forgotten": (gives(lambda p, x: setattr(p, "grad", None)), 1),
    "a mean of all": (gives(lambda p, x: setattr(p, "grad", p.grad * 0.5 + x)), 12),
}


@FUSE
@pytest.mark.parametrize("optimizer", [lambda p: optim.SGD(p, lr=0.1), optim.Adam])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_may_be_assigned(name, optimizer, fuse):
    make, most = GRADIENTS[name]
    assert alike(lambda: make(optimizer), fuse=fused(fuse)).recordings <= most


def test_an_argument_that_became_a_gradient_is_not_written_into():
    p = nn.Parameter(mi.zeros(6, 4))
    given = [mi.Tensor(numbers(6, 4, seed=i)) for i in range(6)]
    before = [x.array.copy() for x in given]

    @mi.capture
    def f(x):
        p.grad = x
        backward(p, x)
        return x * 1

    for x in given:
        f(x)
    assert all(np.array_equal(x.array, b) for x, b in zip(given, before))


def test_a_step_that_forgets_first_does_not_mind_what_gradients_there_were():
    step, held = stepping(deep(0.0))
    captured = mi.capture(step)
    for i, (x, _) in enumerate(batches(6, 4) * 3):
        if i % 2:
            for t in held():
                t.grad = mi.ones_like(t) if t.requires_grad and i % 3 else None
        captured(x)
    assert captured.recordings == 1


def test_a_step_that_adds_minds_whether_there_was_one():
    p = nn.Parameter(mi.ones(6, 4))
    captured = mi.capture(lambda x: backward(p, x))
    for i in range(12):
        x = mi.Tensor(numbers(6, 4, seed=i))
        p.grad = None if i % 4 == 3 else p.grad
        before = 0 if p.grad is None else p.grad.array.copy()
        captured(x)
        assert np.array_equal(p.grad.array, before + 2 * x.array), i
    assert captured.recordings <= 3


def test_parameters_are_of_their_class_again():
    model = deep(0.5)
    captured = mi.capture(stepping(model)[0])
    for x, _ in batches(6, 4)[:3]:
        captured(x)
    assert {type(p) for p in model.parameters()} == {nn.Parameter}


@pytest.mark.parametrize("name", ["momentum", "Adam", "AdaGrad", "RMSProp"])
def test_what_an_optimizer_begins_to_remember_it_begins_once(name):
    def make():
        p, q = (nn.Parameter(mi.Tensor(numbers(6, 4, seed=i))) for i in range(2))
        optimizer, count = OPTIMIZERS[name]([p, q]), iter(range(99))

        def step(x):
            optimizer.step()
            return x * 1

        def held():
            q.grad = mi.zeros(6, 4) if q.grad is None else q.grad  # from the second step on
            for i, t in enumerate((p, q)):
                t.grad.copy_(mi.Tensor(numbers(6, 4, seed=2 * next(count) + i)))
            return [p, q, *memory(nn.Module(), optimizer)]

        p.grad = mi.ones(6, 4)
        return step, held

    assert alike(make).recordings == 1


# ---- what is replaced ----


class Memory:
    "Something with a state."

    def __init__(self):
        self.state, self.rows = mi.zeros(6, 4), [mi.zeros(6, 4)]


def replace_state(memory, p, x):
    memory.state = memory.state * 0.5 + x


def replace_rows(memory, p, x):
    memory.rows = [row * 0.5 + x for row in memory.rows]


def replace_row(memory, p, x):
    memory.rows[0] = memory.rows[0] * 0.5 + x


def replace_array(memory, p, x):
    p.data = p.detach() * 0.5 + x


@pytest.mark.parametrize("change, what", [
    (replace_state, "'state'"), (replace_rows, "'rows'"), (replace_row, "0"),
    (replace_array, "the array of a Parameter"),
])  # fmt: skip
def test_replacing_what_was_read_is_refused(change, what):
    memory, p = Memory(), nn.Parameter(mi.ones(6, 4))
    captured, x = mi.capture(lambda x: change(memory, p, x)), mi.Tensor(numbers(6, 4))
    captured(x)
    before = memory.state, *memory.rows, p.array
    for _ in range(2):
        with pytest.raises(CaptureError, match=f"replacing {what} cannot.*copy_") as caught:
            captured(x)
        assert "captured(x)" in str(caught.value)  # the line
        after = memory.state, *memory.rows, p.array
        assert all(a is b for a, b in zip(before, after, strict=True))


def test_what_is_written_into_is_read_again():
    def make():
        memory = Memory()

        def f(x):
            memory.state.copy_(memory.state * 0.5 + x)
            return memory.state * 1

        return f, lambda: [memory.state]

    assert alike(make).recordings == 1


def test_what_is_only_left_may_be_replaced():
    def make():
        memory = Memory()

        def f(x):
            memory.state = x * 2
            return x * 1

        return f, lambda: [memory.state]

    assert alike(make).recordings == 1
