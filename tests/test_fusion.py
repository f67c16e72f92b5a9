"Fused plans compute what the calls compute, in fewer passes; what does not fit stays a call."

import ast
import os
import re
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from programs import numbers, random_program, skip_unless_fused
from test_capture import KINDS, LOSSES, MODELS, OPTIMIZERS, batches, equal, small, training

import minima as mi
from minima import nn, optim
from minima import operators as ops
from minima.backend import Kernels, kernels_off

skip_unless_fused()

import numba

from minima.capture import fusion, runs
from minima.capture.plan import Plan
from minima.capture.tape import Tape
from minima.capture.recorder import recorder

FLOATS = ["float32", "float64"]


def planned(function, *arrays, fuses=True):
    "The plan of `function(xp, *arrays)`, which returns an array or a tuple of them."
    recorder.tape = tape = Tape()
    given = [tape.lift(a) for a in arrays]
    found = function(recorder.xp, *given)
    recorder.tape = None
    outs = [a.number for a in (found if isinstance(found, tuple) else (found,))]
    plan = Plan(tape, [a.number for a in given], outs, [], True, fuses)
    plan.parameters = [(a.number, True) for a in given]
    plan.write([], [])
    return plan


def fused(function, *arrays):
    "The results of a plan that is fused to one loop, beside NumPy's, and the loop."
    with np.errstate(all="ignore"):
        plan, again = planned(function, *arrays), [a.copy() for a in arrays]
        found, wanted = plan.replay(*arrays), function(np, *again)
    assert plan.count - str(plan).count(" = reshape(") == len(plan.fused) == 1, plan
    assert all(map(np.array_equal, arrays, again, [True] * len(arrays)))
    return found, wanted if isinstance(wanted, tuple) else (wanted,), plan.fused[0]


# ---- one loop ----

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-3, 3.5, np.inf, -np.inf, np.nan, 1e38]
ONE = [
    np.negative, np.absolute, np.square, np.positive, np.sqrt, np.copy, lambda x: x**2,
    lambda x: x**0.5, lambda x: x**1, lambda x: np.inf - x, lambda x: x * np.nan, lambda x: 2 / x,
]  # fmt: skip
TWO = [np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum]
TESTS = [np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal]


def by(xp, f, *args):
    "NumPy's `f`, or that of the same name of `xp`."
    return getattr(xp, f.__name__)(*args) if hasattr(np, f.__name__) else f(*args)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("functions", [ONE, TWO], ids=["one", "two"])
def test_arithmetic_has_the_same_bits_whatever_the_numbers(functions, dtype):
    x, y = (a.reshape(-1) for a in np.meshgrid(*[np.array(SPECIAL, dtype)] * 2))
    args = (x, y) if functions is TWO else (x,)
    found, wanted, _ = fused(lambda xp, *args: tuple(by(xp, f, *args) for f in functions), *args)
    for f, a, b in zip(functions, found, wanted, strict=True):
        assert a.dtype == dtype and np.array_equal(a, b, equal_nan=True), f.__name__


@pytest.mark.parametrize("dtype", FLOATS)
def test_tests_and_choices(dtype):
    x, y = (a.reshape(-1) for a in np.meshgrid(*[np.array(SPECIAL, dtype)] * 2))

    def one(xp, f, x, y):
        true = by(xp, f, x, y)
        other = xp.logical_or(xp.logical_not(true), xp.logical_and(true, x > 0))
        return true, other, ~true & other | true, xp.where(other, x, y), x * other, true * 2.0

    program = lambda xp, x, y: tuple(a for f in TESTS for a in one(xp, f, x, y))
    found, wanted, _ = fused(program, x, y)
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True), TESTS[k // 6].__name__


@pytest.mark.parametrize("dtype, most", [("float32", 3e-7), ("float64", 1e-15)])
def test_exponentials_are_right_up_to_a_rounding(dtype, most):
    x = np.concatenate([np.linspace(-80, 80, 1001), [np.inf, -np.inf, np.nan]]).astype(dtype)
    found, wanted, _ = fused(lambda xp, x: xp.exp(x) * 0.5, x)
    assert np.allclose(found[0], wanted[0], rtol=most, atol=0, equal_nan=True)


SHAPES = [((5, 7), (7,)), ((5, 7), (1, 7)), ((5, 7), (5, 1)), ((5, 7), ()), ((5, 7), (1, 1))]
SHAPES += [((2, 5, 7), (5, 7)), ((2, 5, 7), (2, 1, 1)), ((2, 5, 7), (2, 5, 1)), ((1,), ())]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, other", SHAPES)
def test_rows_columns_and_single_numbers(shape, other, dtype):
    x, y = (numbers(*s, seed=1).astype(dtype).reshape(s) for s in (shape, other))
    found, wanted, _ = fused(lambda xp, x, y: ((x - y) * 2, y * x + y, x / (y + x)), x, y)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == shape and np.array_equal(a, b)


def test_rows_of_two_widths_take_two_loops():
    x, y, z = numbers(2, 3, 4), numbers(4), numbers(2, 1, 1)
    plan = planned(lambda xp, x, y, z: (x * y + y) * z - z, x, y, z)
    assert len(plan.fused) == 2 and np.array_equal(plan.replay(x, y, z)[0], (x * y + y) * z - z)


@pytest.mark.parametrize("dtype", FLOATS)
def test_two_dtypes(dtype):
    x, y = numbers(50).astype(dtype), numbers(50, seed=1).astype("float64")
    found, wanted, _ = fused(
        lambda xp, x, y: (x * 0.1 + y, x * 0.3, xp.astype(y * x, "float32")), x, y
    )
    assert [a.dtype for a in found] == [a.dtype for a in wanted]
    assert all(map(np.array_equal, found, wanted))


AXES = [None, 0, 1, 2, -1, (1, 2), (0, 1), (0, 1, 2)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_sums(axis, keepdims, dtype):
    x = numbers(6, 5, 700).astype(dtype)
    f = lambda xp, x: xp.add.reduce(x * x + 0.5, axis=axis, keepdims=keepdims)
    if axis == 1:
        plan = planned(f, x)
        assert len(plan.fused) == 1 and plan.count >= 2 and "total" not in plan.fused[0].text
        return
    found, wanted, loop = fused(f, x)
    assert np.shape(found[0]) == np.shape(wanted[0]) and np.allclose(found[0], wanted[0], rtol=1e-6)

    def keeps(xp, x):
        y = x * x + 0.5
        return xp.add.reduce(y, axis=axis, keepdims=keepdims), y

    both, wanted, _ = fused(keeps, x)
    assert np.array_equal(both[0], found[0])  # where the numbers lie makes no difference
    assert np.array_equal(both[1], wanted[1])


def test_several_sums_and_a_sum_of_what_came_in():
    x, y = numbers(3000), numbers(3000, seed=1)
    program = lambda xp, x, y: (x * y, xp.add.reduce(x * y), xp.add.reduce(x), xp.add.reduce(x - y))
    plan = planned(program, x, y)
    assert all(map(np.allclose, plan.replay(x, y), program(np, x, y)))
    assert np.array_equal(plan.replay(x, y)[0], x * y) and plan.fused


def test_a_sum_of_a_million_is_exact_to_a_rounding():
    x = np.random.default_rng(0).random(1_000_003, "float32")
    (found,), _, _ = fused(lambda xp, x: xp.add.reduce(x * 1.0 + 0.0), x)
    assert abs(found - x.sum(dtype="float64")) < 1e-7 * found


def innermost(tree):
    "The loops without loops inside."
    inside = lambda node: [n for part in node.body for n in ast.walk(part)]
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    return [inside(node) for node in loops if not any(isinstance(n, ast.For) for n in inside(node))]


def test_no_loop_both_writes_and_adds_up():
    "Else its bits depend on where arrays lie; and no function may change the order of operations."
    x, y = numbers(6, 700), numbers(700)
    found = []
    for axis in (None, 0, 1):
        program = lambda xp, x, y, axis=axis: (x * y, xp.add.reduce(x * y * y, axis=axis))
        for args in ((x, y), (x[0], y)) if axis is None else ((x, y),):
            found += planned(program, *args).fused
    for loop in found:
        for nodes in innermost(ast.parse(loop.text)):
            assert not any(
                isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name) for n in nodes
            )
        code = fusion.machine_code(loop.name, loop.text)
        assert code.targetoptions["fastmath"] == set()
    assert len(found) == 4


def test_loops_use_vectors():
    x = numbers(64)
    program = lambda xp, x: (
        xp.where(x > 0, xp.exp(xp.maximum(x, -1.0)), xp.sqrt(xp.absolute(x))) * x
    )
    _, _, loop = fused(program, x)
    code = numba.njit(fusion.machine_code(loop.name, loop.text).py_func, error_model="numpy")
    code(x, x.copy())
    (llvm,) = code.inspect_llvm().values()
    assert re.search(r"<\d+ x float>", llvm)


# ---- memory ----


def test_what_lies_between_is_not_stored():
    def chain(xp, x):
        for k in range(20):
            x = x * (k + 1.5) - 1
        return x

    x = numbers(1000)
    assert planned(chain, x).peak == 0 < planned(chain, x, fuses=False).peak
    found, wanted, loop = fused(chain, x)
    assert len(loop.args) == 2 and len(loop.members) == 40 and np.array_equal(*found, *wanted)


def test_writing_in_place():
    def program(xp, x, y):
        total = x + y
        total *= 3
        view = xp.reshape(total, (-1,))
        view += 1
        return total, view * view

    found, wanted, _ = fused(program, numbers(3, 4), numbers(4))
    assert all(map(np.array_equal, found, wanted))


def test_what_is_written_is_not_read_elsewhere_in_the_same_loop():
    "Sums, and parts of an array that is changed, wait for the next loop."

    def shifted(xp, x):
        y = x * 2
        y[1:] += y[:-1]
        z = y * 1.0
        z -= z[:1]
        return y * 3, z + xp.add.reduce(z) * z, xp.reshape(z, (3, 4)) * xp.reshape(z, (3, 4))[:1]

    x = numbers(12)
    plan = planned(shifted, x)
    assert all(map(np.allclose, plan.replay(x), shifted(np, x)))


@pytest.mark.parametrize(
    "program",
    [
        lambda xp, x: xp.tanh(xp.log(x * x)),
        lambda xp, x: xp.astype(x, "int64") + 1,
        lambda xp, x: xp.add.reduce(x.T, axis=0),
        lambda xp, x: x[:, ::2] * 2 + 1,
        lambda xp, x: x[:0] * 2 + 1,
        lambda xp, x: x**3 * 2,
        lambda xp, x: xp.astype(x, "float16") * 2 + 1,
        lambda xp, x: xp.add.reduce(x, axis=0),
        lambda xp, x: xp.maximum.reduce(x * 2, axis=0),
    ],
)
def test_what_does_not_fit_stays_a_call(program):
    x = numbers(4, 6)
    plan = planned(program, x)
    assert not plan.fused and str(plan.fused) == ""
    assert np.array_equal(plan.replay(x)[0], program(np, x))


# ---- whole steps ----


@pytest.fixture(params=["kernels", "rules"])
def reading(request):
    "Everything holds with kernels and without."
    with nullcontext() if request.param == "kernels" else kernels_off():
        yield


def alike(make, make_optimizer, data, steps=200, rtol=1e-6, **more):
    "Train with a fused plan and with one that is not, and compare losses; returns the fused one."
    models = [make(), make()]
    optimizers = [make_optimizer(model.parameters()) for model in models]
    plain, other = (training(m, o, **more) for m, o in zip(models, optimizers))
    plain = mi.capture(plain, fuse=False)
    other, generator = mi.capture(other, fuse=True, check=True), mi.random.default_generator
    for i in range(steps):
        x, y = data[i % len(data)]
        state = generator.get_state()
        wanted = plain(x, y)
        generator.set_state(state)
        assert np.allclose(other(x, y).array, wanted.array, rtol=rtol, atol=1e-7), f"step {i}"
    assert other.recordings == plain.recordings and other.plan.moved <= plain.plan.moved
    return other


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name, reading):
    rtol = 1e-5 if name == "RMSProp" else 1e-6  # it divides by what may be almost nothing
    step = alike(small, OPTIMIZERS[name], batches(), rtol=rtol)
    assert Kernels.on or step.plan.fused


def interpreted(name, text):
    "A loop that Python goes through itself, slowly, instead of compiling it."
    kernels = import_module("minima.kernels.cpu")
    names = dict(np=np, OUT=kernels.OUT, _exp=np.exp, total_of=kernels.total_of)
    exec(text, names)
    names[name].compile = lambda types: None
    return names[name]


@contextmanager
def interpreting(on=True):
    "In a `with` block no loop is compiled: they are right as they are written, or they are not."
    with pytest.MonkeyPatch.context() as patch:
        if on:
            patch.setattr(fusion, "machine_code", interpreted)
        yield 15 if on else 60  # steps


COMPILED = "layer norm, batch norm, softmax, residual, dropout, fused, smoothed, huber".split(", ")


@pytest.mark.parametrize("name", MODELS)
def test_layers(name, reading):
    def make():
        mi.manual_seed(0)
        return nn.Sequential(*MODELS[name]())

    with interpreting(name not in COMPILED) as steps:
        step = alike(make, optim.Adam, batches(), steps)
    assert Kernels.on or step.plan.fused


WITH_KERNELS = ("cross-entropy", "smoothed", "weighted", "sum", "of rows")
CASES = [(name, "rules") for name in LOSSES] + [(name, "kernels") for name in WITH_KERNELS]


@pytest.mark.parametrize("name, reading", CASES, indirect=["reading"])
def test_losses(name, reading):
    loss_fn, kind = LOSSES[name]
    data = batches()
    if kind != "labels":
        rows = [KINDS[kind](mi.Tensor(numbers(32, 3, seed=9 + i))) for i in range(len(data))]
        data = [(x, row) for (x, _), row in zip(data, rows)]
    with interpreting(name not in COMPILED):
        alike(small, lambda p: optim.SGD(p, lr=0.01), data, steps=15, loss_fn=loss_fn)


UNARY = [ops.exp, ops.tanh, ops.sigmoid, ops.relu, ops.softplus, ops.silu, ops.abs, ops.negate]
BINARY = [ops.add, ops.subtract, ops.multiply, ops.maximum, ops.minimum]
ALONG = [lambda t, axis=axis: ops.mean(t, axis, True) + t for axis in (0, -1)]


def check_program(data):
    "Rows and columns meet in a program, forward and back; fused, it computes the same."
    make = random_program(data, UNARY, BINARY, ALONG)
    (run, weights), (plain, twins) = make(), make()
    captured = mi.capture(run, check=True, fuse=True)
    with np.errstate(all="ignore"), kernels_off():
        for i in range(4):
            x = mi.Tensor(numbers(3, 4, seed=i))
            near = dict(rtol=2e-4, atol=2e-5, equal_nan=True)
            assert np.allclose(captured(x).array, plain(x).array, **near)
            for w, t in zip(weights, twins):
                assert (w.grad is t.grad is None) or np.allclose(w.grad.array, t.grad.array, **near)
    return captured


@given(some.data())
def test_random_programs(data):
    with interpreting():
        check_program(data)


@settings(max_examples=5)
@given(some.data())
def test_random_programs_compiled(data):
    check_program(data)


# ---- when, and where ----


def chained(fuse=None):
    "A captured function that can be fused, called until it is replayed."
    f, x = mi.capture(lambda x: x * 2 + 1, fuse=fuse), mi.Tensor(numbers(5))
    for _ in range(3):
        assert equal(f(x), x * 2 + 1)
    return f


def test_it_is_fused_where_kernels_are_compiled(monkeypatch):
    monkeypatch.setattr(Kernels, "compiled", True)
    monkeypatch.setattr(Kernels, "on", True)
    assert chained().plan.fused and not chained(False).plan.fused
    assert "x1[i] * c1" in str(chained().plan.fused) and "fused_multiply_to_add" in str(
        chained().plan
    )
    with kernels_off():
        assert not chained().plan.fused and chained(True).plan.fused
    monkeypatch.setattr(Kernels, "compiled", False)
    assert not chained().plan.fused
    with pytest.raises(ImportError, match="MINIMA_NUMBA"):
        chained(True)


def test_without_a_compiler_it_is_not_fused(monkeypatch):
    monkeypatch.setitem(sys.modules, "minima.kernels.cpu", None)
    assert not chained().plan.fused
    with pytest.raises(ImportError, match=r"minima\[fast\]"):
        mi.capture(lambda x: x, fuse=True)


def test_a_changing_number_is_looked_up():
    model = small()
    optimizer = optim.RMSProp(model.parameters(), lr=0.1)
    with kernels_off():
        step = mi.capture(training(model, optimizer), fuse=True)
        for x, y in batches():
            step(x, y)
        before = [p.array.copy() for p in model.parameters()]
        optimizer.param_groups[0]["lr"] = 0.0
        step(x, y)
    assert step.recordings == 1 and step.plan.fused
    assert all(np.array_equal(p.array, b) for p, b in zip(model.parameters(), before))


PROGRAM = """
import numpy as np, minima as mi
from minima.capture import fusion, runs
f = mi.capture(lambda x: x * 2 + 1, fuse=True)
for _ in range(3):
    assert f(mi.Tensor(np.ones(5, "float32"))).tolist() == [3.0] * 5
(loop,) = f.plan.fused
code = fusion.machine_code(loop.name, loop.text)
print(sum(code.stats.cache_hits.values()), code.py_func.__code__.co_filename)
"""


def test_loops_are_kept_on_disk(tmp_path):
    "By the hash of their text: the second process compiles nothing."
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = lambda: subprocess.check_output(
        [sys.executable, "-c", PROGRAM], env=environment, text=True
    )
    (first, file), (second, again) = (run().split() for _ in range(2))
    assert (first, second) == ("0", "1") and file == again and file.startswith(str(tmp_path))
    assert "@compiled()" in open(file).read()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Where at most eight loops are kept."
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fusion, "_MOST", 8)
    return tmp_path


def write(folder, k):
    "Loop number `k`, as old as its number says, with two files of machine code."
    path = fusion._kept(f"fused_{k:016x}.loop", "text", folder)
    (folder / "code").mkdir(exist_ok=True)
    others = [folder / "code" / f"fused_{k:016x}.f-1.{end}" for end in ("nbi", "1.nbc")]
    for file in others:
        file.write_text("")
    for file in (path, *others):
        os.utime(file, (k, k))


def loops(folder, pattern="*.loop"):
    "The numbers of the loops of which there is a file."
    return [int(f.name.partition(".")[0][6:], 16) for f in sorted(folder.glob(pattern))]


def test_only_the_newest_loops_are_kept(folder):
    (folder / "code").mkdir()
    others = [folder / "cpu.linear.nbi", folder / "code" / "cpu.linear.nbi", folder / "mine.loop"]
    for file in others:
        file.write_text("")
    for k in range(1, 9):
        write(folder, k)
    assert loops(folder, "fused_*.loop") == [*range(1, 9)]
    write(folder, 9)
    assert loops(folder, "fused_*.loop") == [4, 5, 6, 7, 8, 9]
    assert loops(folder, "code/fused_*.nbi") == loops(folder, "code/fused_*.nbc") == [*range(4, 10)]
    assert all(file.exists() for file in others)
    for k in range(10, 40):
        write(folder, k)
        assert len(loops(folder, "fused_*.loop")) <= 8


def test_who_tidies_up_at_the_same_time_is_not_disturbed(folder, monkeypatch):
    for k in range(1, 9):
        write(folder, k)
    unlink = fusion.Path.unlink

    def too_late(file):
        os.unlink(file)
        unlink(file)  # which somebody else has done

    monkeypatch.setattr(fusion.Path, "unlink", too_late)
    write(folder, 9)
    assert loops(folder, "fused_*.loop") == [4, 5, 6, 7, 8, 9]


def test_a_loop_that_was_removed_is_written_again_for_other_numbers(folder):
    f = lambda xp, x: x * 2.25 + 1
    planned(f, numbers(7))
    (file,) = folder.glob("fused_*.loop")
    file.unlink()
    x = numbers(7).astype("float64")
    assert np.array_equal(planned(f, x).replay(x)[0], f(np, x))


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    def nobody_may_write(*_):
        raise PermissionError

    monkeypatch.setattr(fusion.Path, "exists", nobody_may_write)
    plan = planned(lambda xp, x: x * 5 - 4, x := numbers(7))
    assert np.array_equal(plan.replay(x)[0], x * 5 - 4)
    code = fusion.machine_code(plan.fused[0].name, plan.fused[0].text)
    assert code.py_func.__code__.co_filename == "<fused>"


def test_a_text_is_compiled_once():
    x = numbers(9)
    texts = [planned(lambda xp, x: x * 2 + 7, x).fused[0].text for _ in range(2)]
    before = fusion._module.cache_info().misses
    planned(lambda xp, x: x * 2 + 7, numbers(3, 3))
    assert texts[0] == texts[1] and fusion._module.cache_info().misses == before


def test_a_long_run_becomes_several_loops(monkeypatch):
    monkeypatch.setattr(runs, "MOST", 5)

    def chain(x):
        for k in range(12):
            x = x * (k + 1.5)
        return x

    step, x = mi.capture(chain, fuse=True), mi.Tensor(numbers(7))
    for _ in range(3):
        assert np.array_equal(step(x).array, chain(x).array)
    assert [len(loop.members) for loop in step.plan.fused] == [5, 5, 2]
