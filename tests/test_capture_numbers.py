"Numbers that a captured function holds are looked up in each replay, as if it were run as it is."

import math
from types import SimpleNamespace

import numpy as np
import pytest
from programs import skip_unless_fused
from test_capture import agree, batches, capture, equal, made, numbers, reading, small

import minima as mi
from minima import nn, optim
from minima import operators as ops
from minima.capture import CaptureError
from minima.capture.recorded import Number

assert reading  # a fixture, which all tests here use


# ---- dropout ----


def rates(model):
    "The Dropouts of `model`."
    return [module for module in model.modules() if isinstance(module, nn.Dropout)]


NAMES = ["dropout", "two dropouts", "a generator", "fused", "recomputed dropout"]


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_of_p_needs_no_recording(name):
    "At the 13th step all p are 1/65536 and less, of which masks know two."

    def between(i, model, optimizer):
        for k, layer in enumerate(rates(model)):
            layer.p = 0.9 * (i + 1 + k) / 41 if i != 12 else (k + 1) / 65536

    captured = agree(made(name), optim.Adam, batches(), steps=40, between=between)
    assert captured.recordings == 1


def test_nothing_dropped_and_everything_dropped_have_plans_of_their_own():
    "A plan for p = 0, one for what lies between, one for p = 1 where a kernel asks; found again."

    def between(i, model, optimizer):
        for layer in rates(model):
            layer.p = [0.0, 0.3, 1.0, 0.7, 0.2][i % 5]

    captured = agree(made("dropout"), optim.Adam, batches(), steps=40, between=between)
    assert captured.recordings in (2, 3)


def test_what_else_a_dropout_has_is_looked_at():
    "Its `forward` is replaced, and its generator, and both are noticed."

    def between(i, model, optimizer):
        (layer,) = rates(model)
        layer.p = 0.5 - i / 100
        if i == 9:
            layer.forward = lambda x: x * 2
        elif i == 14:
            del layer.forward
        elif i == 19:
            layer.generator = mi.random.Generator(5)

    captured = agree(made("dropout"), optim.Adam, batches(), steps=30, between=between)
    assert captured.recordings == 3


# ---- bounds, and whatever else people turn ----


class Bounds:
    "An object of the user's with a setting."


BOUND = 1.0


def held(how):
    "A function that returns a bound, and one that sets it."
    global BOUND
    bound, settings, namespace, thing = 1.0, {"bound": 1.0}, SimpleNamespace(bound=1.0), Bounds()
    BOUND = thing.bound = 1.0

    def set_bound(value):
        global BOUND
        nonlocal bound
        bound = BOUND = settings["bound"] = namespace.bound = thing.bound = value

    return {
        "variable": lambda: bound,
        "global": lambda: BOUND,
        "item": lambda: settings["bound"],
        "namespace": lambda: namespace.bound,
        "object": lambda: thing.bound,
    }[how], set_bound


HOW = ["variable", "global", "item", "namespace", "object"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", [2.0, 1.0, np.inf, "value"])
def test_a_bound_on_gradients_needs_no_recording(how, kind):
    bound, set_bound = held(how)

    def clip(params):
        if kind == "value":
            return optim.clip_grad_value_(params, bound())
        return optim.clip_grad_norm_(params, bound(), kind)

    between = lambda i, model, optimizer: set_bound((i * 7 % 30) / 40)
    captured = agree(small, optim.Adam, batches(), steps=30, between=between, clip=clip)
    assert captured.recordings == 1


LOSSES = {
    "smoothed": (nn.CrossEntropyLoss, "label_smoothing", "labels"),
    "huber": (nn.HuberLoss, "delta", "numbers"),
    "smooth l1": (nn.SmoothL1Loss, "beta", "numbers"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_setting_of_a_loss_needs_no_recording(name):
    kind, setting, target = LOSSES[name]
    loss_fn, data = kind(**{setting: 0.1}), batches()
    if target == "numbers":
        data = [(x, mi.Tensor(numbers(32, 3, seed=i))) for i, (x, _) in enumerate(data)]
    between = lambda i, model, optimizer: setattr(loss_fn, setting, (1 + i) / 40)
    captured = agree(small, optim.Adam, data, steps=30, between=between, loss_fn=loss_fn)
    assert captured.recordings == 1


def test_a_weight_of_a_loss_of_the_users_own_needs_no_recording():
    "All that Python can do with a float is calculated anew."
    how = {"weight": 0.3, "power": 2.5}

    def loss_fn(y, labels):
        total, weight = nn.CrossEntropyLoss()(y, labels), how["weight"]
        penalty = ops.mean(ops.abs(y) ** how["power"]) * weight - weight / 2
        more = (
            round(abs(-weight) * 10, 2) // 0.3
            + divmod(weight, 0.2)[1]
            + divmod(1, weight)[0]
            + max(weight, 0.0)
        )
        return total * (1 - weight) + penalty + more * ops.sum(y * True * (+weight % 0.7))

    between = lambda i, model, optimizer: how.update(weight=0.3 + i / 100, power=2.5 + i / 50)
    captured = agree(small, optim.SGD, batches(), steps=30, between=between, loss_fn=loss_fn)
    assert captured.recordings == 1


READERS = {
    "math": lambda n: math.exp(-n),
    "int": lambda n: int(n * 10),
    "NumPy's": lambda n: np.exp(n) + np.float32(n),
    "an array": lambda n: float(np.full(2, n).sum()),
    "text": lambda n: float(f"{n:.3f}") + float(str(n)),
    "a set": lambda n: 1.0 if n in {0.25, 0.5} else 2.0,
    "a key": lambda n: {0.25: 3.0, 0.5: 4.0}.get(n, 5.0),
    "a range": lambda n: sum(range(math.ceil(n * 10))),
    "a scalar of NumPy's": lambda n: float(np.float64(2) * n + n * np.float64(3)),
}


@pytest.mark.parametrize("name", READERS)
def test_who_cannot_do_without_the_number_gets_it(name):
    "Then the plan will do as long as it is the same."
    setting, read, f = SimpleNamespace(n=0.25), READERS[name], lambda n: n
    step, x = capture(lambda x: x * f(read(setting.n))), mi.Tensor(numbers(3))
    for n in (0.25, 0.25, 0.25, 0.5, 0.5, 0.75, 0.25, 0.5, 0.75):
        setting.n = n
        assert np.array_equal(step(x).array, x.array * np.float32(read(n))), n
    assert step.recordings == 3


def test_a_number_passes_for_a_float():
    setting, seen = SimpleNamespace(n=0.25), []

    @capture
    def step(x):
        n = setting.n
        seen.append((isinstance(n, float), isinstance(n, int), n is None, n == "no", n == 0.25))
        return (x * n, n) if isinstance(n, float) and n else (x, None)

    x = mi.Tensor(numbers(3))
    for n in (0.25, 0.25, 0.25, 0.5, 2, 2, 2, None, None, None, 0.0, 0.5):
        setting.n = n
        found = step(x)
        assert found[1] == (n if type(n) is float and n else None) and type(found[1]) is not int
        assert np.array_equal(found[0].array, x.array * np.float32(found[1] or 1))
    assert seen[:2] == [(True, False, False, False, True)] * 2


def test_decisions_by_a_number_are_looked_at():
    setting = SimpleNamespace(n=0.25)
    step = capture(lambda x: x * setting.n if setting.n > 0.2 else x - setting.n)
    x = mi.Tensor(numbers(3))
    for n in (0.25, 0.25, 0.3, 0.4, 0.1, 0.05, 0.25, 0.0, 1.0):
        setting.n = n
        wanted = x.array * np.float32(n) if n > 0.2 else x.array - np.float32(n)
        assert np.array_equal(step(x).array, wanted), n
    assert step.recordings == 2


def test_a_number_that_goes_or_becomes_another_kind_is_noticed():
    settings = {"n": 0.25}
    step = capture(lambda x: x * settings["n"] if "n" in settings else x * len(settings))
    x = mi.Tensor(numbers(3))
    for now in ({"n": 0.5}, {"n": 0.3}, {"n": 3}, {}, {"m": 1.0}, {"m": 1.0, "k": 2}, {"n": 0.1}):
        for _ in range(3):
            settings.clear()
            settings.update(now)
            wanted = x.array * np.float32(now.get("n", len(now)))
            assert np.array_equal(step(x).array, wanted), now


def test_a_number_that_the_function_turns_itself():
    "As a schedule of one's own does: the next replay begins where this one has ended."

    def make():
        mi.manual_seed(0)
        w, layer, how = mi.Tensor(numbers(6), requires_grad=True), nn.Dropout(0.9), {"bound": 1.0}

        def step(x):
            layer.p = layer.p * 0.97
            how["bound"] = how["bound"] / 1.01 if how["bound"] > 0.1 else how["bound"]
            w.grad = None
            ops.sum(layer(w * x)).backward()
            optim.clip_grad_norm_([w], how["bound"])
            return w.grad

        return step, layer, how

    (step, *ours), (plain, *theirs) = make(), make()
    step, x = capture(step), mi.Tensor(numbers(6))
    for i in range(30):
        mi.manual_seed(i)
        found = step(x)
        mi.manual_seed(i)
        assert equal(found, plain(x)), i
        assert ours[0].p == theirs[0].p and ours[1] == theirs[1]
    assert step.recordings == 1


def test_a_number_that_is_set_to_what_it_was():
    setting = SimpleNamespace(n=0.25)

    @capture
    def step(x):
        y = x * setting.n
        setting.n = 0.25
        return y * setting.n

    x = mi.Tensor(numbers(3))
    for n in (0.25, 0.25, 0.25, 0.25):
        setting.n = n
        assert np.array_equal(step(x).array, x.array * np.float32(n) * np.float32(0.25))
    assert step.recordings == 1
    setting.n = 0.5
    with pytest.raises(CaptureError, match="setting 'n' to another number"):
        step(x)
    assert setting.n == 0.5


def test_a_schedule_that_reads_the_same_number():
    "It finds a float, while the function beside it finds what is looked up."

    def make():
        w = nn.Parameter(mi.ones(3))
        optimizer, how = optim.SGD([w], lr=0.1), {"gain": 0.5}
        schedule = optim.LambdaLR(
            optimizer, lambda t: how["gain"] if type(how["gain"]) is float else 9
        )

        def step(x):
            how["gain"] = how["gain"] * 0.9
            w.grad = None
            ops.sum(w * w * x * how["gain"]).backward()
            optimizer.step()
            schedule.step()
            return w.detach() * how["gain"]

        return step, how, optimizer.param_groups[0]

    (step, *ours), (plain, *theirs) = make(), make()
    step = capture(step)
    for i in range(20):
        x = mi.Tensor(numbers(3, seed=i))
        assert equal(step(x), plain(x)), i
        assert ours[0] == theirs[0] and ours[1]["lr"] == theirs[1]["lr"]
    assert step.recordings == 1


def test_a_number_that_no_replay_would_set_is_refused_and_left():
    setting = SimpleNamespace(n=0.25)
    values = iter([0.5, 0.75, 1.0])

    @capture
    def step(x):
        setting.n = next(values)
        return x * setting.n

    x = mi.Tensor(numbers(3))
    step(x)
    with pytest.raises(CaptureError, match="setting 'n' to another number"):
        step(x)
    assert setting.n == 0.5


def test_numbers_of_libraries_stay_what_they_are():
    step, x = capture(lambda x: x * math.pi), mi.Tensor(numbers(3))
    for _ in range(3):
        step(x)
    assert type(math.pi) is float and "n0" not in str(step.plan)


def test_numbers_in_fused_loops():
    "They are arguments of a loop, so none is compiled anew."
    skip_unless_fused()

    def make():
        mi.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        how, sgd = {"bound": 0.5, "weight": 0.1}, optim.SGD(model.parameters(), lr=0.1)

        def step(x, y):
            sgd.zero_grad()
            scores = model(x)
            penalty = ops.sum((scores * how["weight"] + how["weight"] - 1) ** 2)
            loss = nn.CrossEntropyLoss()(scores, y) + penalty * how["weight"]
            loss.backward()
            optim.clip_grad_norm_(model.parameters(), how["bound"])
            sgd.step()
            return loss

        return step, how, model

    (step, *ours), (plain, *theirs) = make(), make()
    step = mi.capture(step, fuse=True, check=True)
    for i, (x, y) in enumerate(batches() * 5):
        for how, model in (ours, theirs):
            how.update(bound=1 / (1 + i), weight=0.1 + i / 100)
            model[1].p = 0.8 - i / 40
        state = mi.random.default_generator.get_state()
        wanted = plain(x, y)
        mi.random.default_generator.set_state(state)
        np.testing.assert_allclose(step(x, y).array, wanted.array, rtol=1e-5)
    assert step.recordings == 1 and any(
        isinstance(a, Number) for loop in step.plan.fused for a in loop.args
    )
    for p, q in zip(ours[1].parameters(), theirs[1].parameters()):
        np.testing.assert_allclose(p.array, q.array, rtol=1e-5, atol=1e-6)
