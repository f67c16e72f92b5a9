"Each compiled kernel against its rule: values, gradients, layouts, NaN, threads, and what is left."

import ast
import inspect
import itertools
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from test_operators import LAYOUTS, ROWS, is_operator, numbers

from minima import nn
from minima import operators as ops
from minima.autograd import Tensor
from minima.backend import kernels_off, numpy_backend
from minima.optim.optimizers import _adam, _sgd
from minima.random import keep_mask

numba = pytest.importorskip("numba", reason="numba is not installed, so there are no kernels")
if os.environ.get("MINIMA_NUMBA") == "0":
    pytest.skip("MINIMA_NUMBA=0, so there are no kernels", allow_module_level=True)

from minima.kernels import compiling, cpu, linear, norms, optim
from minima.kernels.compiling import compiled

xp = numpy_backend.xp
COMPILED = {
    name: kernel
    for module in (cpu, linear)
    for name, kernel in vars(module).items()
    if is_operator(getattr(ops, name, None)) and kernel.__module__.startswith("minima")
}
OURS = [row for row in ROWS if row.name.partition(",")[0] in COMPILED]
FLOATS = ["float32", "float64"]
LARGE = {
    "softmax": ((37, 513), (3, 5, 1000), (2, 1), (1000, 10)),
    "cross_entropy": ((37, 513), (300, 3), (2, 1)),
    "other": ((7, 1001), (3,), (2, 3, 4, 5)),
}


def alike(found, expected, slack=1.0):
    "Assert that arrays are equal up to rounding, NaN and infinities among them."
    assert found.shape == expected.shape and found.dtype == expected.dtype
    finite = np.isfinite(expected)
    assert np.array_equal(found[~finite], expected[~finite], equal_nan=True)
    assert np.isfinite(found[finite]).all()
    eps, size = np.finfo(expected.dtype).eps, np.abs(expected[finite]).max(initial=1e-30)
    np.testing.assert_allclose(
        found[finite], expected[finite], rtol=60 * eps, atol=20 * slack * eps * min(size, 1e30)
    )


def upstream(value, seed=1):
    return np.asarray(np.random.default_rng(seed).normal(size=value.shape), dtype=value.dtype)


def reading(read, arrays, settings, g=None):
    "The value and all gradients, summed to the shapes of the arguments as the engine does."
    y, *pulls = read(xp, *arrays, **settings)
    y = np.asarray(y)
    g = upstream(y) if g is None else g
    found = [y]
    for a, pull in zip(arrays, pulls):
        d = np.asarray(pull(g))
        extra = tuple(range(d.ndim - a.ndim))
        d = d.sum(axis=extra) if extra else d
        thin = tuple(i for i, n in enumerate(a.shape) if n != d.shape[i])
        found.append(d.sum(axis=thin, keepdims=True) if thin else d)
    return found


def compare(name, arrays, settings, g=None, slack=1.0):
    "Assert that the kernel called `name` agrees with its rule, and writes into no argument."
    before = [a.copy() for a in arrays]
    with np.errstate(all="ignore"):
        found = reading(COMPILED[name], arrays, settings, g)
        expected = reading(getattr(ops, name).rule, arrays, settings, g)
    for mine, rules in zip(found, expected, strict=True):
        alike(mine, rules, slack)
    for a, b in zip(arrays, before, strict=True):
        assert np.array_equal(a, b, equal_nan=True), "a kernel wrote into its argument"


def cast(arrays, dtype):
    "Copies of `arrays` that can be written to, those of floats in `dtype`, in the same layout."
    return [a.astype(dtype, order="K") if a.dtype.kind == "f" else a.copy() for a in arrays]


# ---- which there are ----


def test_the_kernels_are_found_where_operations_look_for_them():
    wanted = "cross_entropy dropout_by_draw gelu leaky_relu linear log_softmax relu sigmoid silu"
    assert {*COMPILED} == {*wanted.split(), "softmax", "tanh"}
    for name, kernel in COMPILED.items():
        assert getattr(ops, name).readings.kernels.find("cpu") is kernel
        with kernels_off():
            assert getattr(ops, name).readings.kernels.find("cpu") is None


def test_what_is_compiled_is_not_hidden_by_what_is_not():
    "NumPy's kernels are registered first, in whatever order modules are imported."
    program = "import minima as mi; mi.Tensor([[1.0]]).relu(); mi.operators.cross_entropy([[1.0]], "
    program += "[0]); print(mi.operators.cross_entropy.readings.kernels.known['cpu'].__module__)"
    assert run(program) == "minima.kernels.cpu"


# ---- against the rules ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_a_kernel_computes_what_its_rule_does(row, dtype):
    for shapes, settings in row.cases():
        arrays = cast(numbers(row.make, shapes), dtype)
        compare(row.name.partition(",")[0], arrays, settings)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "as it is"])
@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_layouts_make_no_difference(row, layout):
    for shapes, settings in row.cases():
        arrays = [LAYOUTS[layout](a) for a in cast(numbers(row.make, shapes), "float32")]
        compare(row.name.partition(",")[0], arrays, settings)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("row", OURS, ids=lambda row: row.name)
def test_large_and_odd_shapes(row, dtype):
    name = row.name.partition(",")[0]
    if name in ("linear", "dropout_by_draw") or "number" in row.name:
        pytest.skip("has tests of its own")
    for shape in LARGE.get(name.removeprefix("log_"), LARGE["other"]):
        shapes = [shape, shape[:1]] if name == "cross_entropy" else [shape]
        arrays = cast(numbers(row.make, shapes), dtype)
        if name == "cross_entropy":
            arrays[1] %= shape[1]
        compare(name, arrays, {}, slack=20 if name == "cross_entropy" else 4)


SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 88.7, -88.7, 3.0]
UNARY = [n for n in COMPILED if n not in ("linear", "cross_entropy", "dropout_by_draw")]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_nan_and_infinities_go_where_the_rule_has_them(name, dtype):
    a = np.array(list(itertools.product(SPECIAL, SPECIAL[:8])), dtype)
    a = np.concatenate([a, np.full((len(a), 3), 0.5, dtype)], axis=1)
    if name == "gelu":
        a[np.abs(a) > 1e18] = np.nan  # whose square the rule cannot hold
    compare(name, [a], {})
    if name in ("relu", "tanh", "sigmoid", "leaky_relu"):
        flat = np.array(SPECIAL, dtype)
        compare(name, [np.full_like(flat, 0.25)], {}, flat)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_in_scores_is_nan_in_the_loss_and_stays_in_its_row(dtype):
    for bad in (np.nan, np.inf):
        scores = np.zeros((4, 5), dtype)
        scores[2, 3] = bad
        compare("cross_entropy", [scores, np.array([0, 1, 2, 3])], {})
    masked = np.zeros((4, 5), dtype)
    masked[:, 2] = -np.inf
    compare("cross_entropy", [masked, np.array([0, 1, 3, 4])], {})


@pytest.mark.parametrize(
    "dtype, x, rtol", [("float32", [-87, -60, -9], 1e-6), ("float64", [-705, -100, -87, -9], 1e-13)]
)
def test_far_out_there_are_as_many_digits(dtype, x, rtol):
    x = np.array([*x, 0], dtype)
    expected = np.exp(x.astype("float64"))
    np.testing.assert_allclose(cpu.sigmoid(xp, x)[0], expected / (1 + expected), rtol=rtol)
    np.testing.assert_allclose(cpu.softmax(xp, x)[0], expected / expected.sum(), rtol=rtol)


def test_a_probability_of_zero_is_zero():
    y, _ = cpu.softmax(xp, np.array([[0, -np.inf, -1e4, 0]], "float32"))
    assert y.tolist() == [[0.5, 0, 0, 0.5]]


@pytest.mark.parametrize("name", UNARY)
def test_any_cotangent_will_do(name):
    a = np.random.default_rng(0).normal(size=(6, 5)).astype("float32")
    wide = np.random.default_rng(1).normal(size=(6, 10))
    frozen = wide[:, :5].astype("float32")
    frozen.flags.writeable = False
    for g in (wide[:, ::2].astype("float32"), wide[:, 5:], frozen, np.broadcast_to(a[:1], a.shape)):
        _, pull = COMPILED[name](xp, a)
        _, by_rule = getattr(ops, name).rule(xp, a)
        alike(pull(g), by_rule(g.astype("float32")))


@pytest.mark.parametrize("name", UNARY)
def test_what_a_kernel_does_not_know_goes_by_the_rule(name):
    rng = np.random.default_rng(0)
    operation = getattr(ops, name)
    a = rng.normal(size=(3, 4))
    others = a.astype("float16"), rng.integers(-3, 3, (3, 4)), a[:0], a[:, :0], a.astype(">f4"), 1.5
    for a in others:
        found = operation(a).numpy()
        with kernels_off():
            expected = operation(a).numpy()
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-3 if found.itemsize == 2 else 1e-5)


# ---- one by one ----


def test_a_wrong_label_is_an_error_and_nothing_is_read_there():
    scores = np.zeros((3, 4), "float32")
    for labels in ([0, 1, 4], [0, 1, 10**12]):
        with pytest.raises(IndexError):
            ops.cross_entropy(scores, labels)
    with pytest.raises(IndexError):
        ops.cross_entropy(scores, [0, 1])


def test_scores_of_other_shapes_are_left_to_numpy(monkeypatch):
    monkeypatch.setattr(cpu.in_place, "cross_entropy", lambda *a, **how: "left")
    scores, labels = np.ones((3, 2, 4), "float32"), np.zeros(3, int)
    assert cpu.cross_entropy(xp, scores, labels) == "left"
    assert cpu.cross_entropy(xp, scores[0], labels[:2])[0] == np.log(np.float32(4))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "uint16"])
def test_labels_are_any_integers(kind):
    rng = np.random.default_rng(0)
    compare("cross_entropy", [rng.normal(size=(9, 7)), rng.integers(0, 7, 9).astype(kind)], {})


def test_the_loss_is_as_exact_as_its_mean():
    scores = np.random.default_rng(0).normal(size=(200_000, 3)).astype("float32")
    labels = np.zeros(len(scores), "int64")
    exact, _ = ops.cross_entropy.rule(xp, scores.astype("float64"), labels)
    loss, _ = cpu.cross_entropy(xp, scores, labels)
    assert abs(loss - exact) < 1e-7


@pytest.mark.parametrize("p", [1 / 65536, 0.1, 0.5, 0.9, 65535 / 65536])
@pytest.mark.parametrize("shape", [(1,), (7,), (8, 3), (513,), (5, 7, 31), (64, 128)])
def test_dropout_drops_what_the_mask_says(p, shape):
    p = round(p * 65536) / 65536
    for seed, offset in [(0, 0), (2**64 - 1, 2**64 - 1), (2**33 + 7, 2**35 + 1)]:
        x = np.random.default_rng(0).normal(size=shape).astype("float32")
        y, pull, *_ = cpu.dropout_by_draw(xp, x, np.array([seed, offset], "uint64"), p=p)
        keep = keep_mask(shape, p, seed, offset)
        assert np.array_equal(y, ops.dropout.rule(xp, x, keep, p=p)[0])
        assert np.array_equal(pull(x), y)


def test_dropout_is_the_loops(monkeypatch):
    loop, calls = cpu._dropout, []
    monkeypatch.setattr(cpu, "_dropout", lambda *a: calls.append(a) or loop(*a))
    draw = np.array([1, 2], np.uint64)
    for p in (0, 1 / 65536, 0.5, 65535 / 65536, 1):
        cpu.dropout_by_draw(xp, np.ones(3, "float32"), draw, p=p)
    assert [threshold for *_, threshold, _ in calls] == [1, 32768, 65535]


def test_nothing_or_all_is_dropped_by_the_rule():
    x, draw = np.ones((2, 3)), np.array([1, 2], "uint64")
    for p in (0.0, 1e-9, 1.0, 1 - 1e-9):
        y, *_ = cpu.dropout_by_draw(xp, x, draw, p=p)
        assert np.allclose(y, 1 - round(p))


SHAPES = [
    ((5, 3), (1, 4)), ((5, 3), (4,)), ((2, 5, 3), (1, 4)), ((2, 5, 3), (4,)), ((3,), (4,)),
    ((0, 3), (4,)), ((5, 0), (4,)), ((5, 3), (1,)), ((5, 3), (5, 4)), ((5, 3), (1, 1, 4)),
    ((64, 300), (4,)),
]  # fmt: skip


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape, bias", SHAPES)
def test_linear_with_any_activation_and_bias(shape, bias, dtype, activation):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s).astype(dtype) for s in (shape, (shape[-1], 4), bias)]
    compare("linear", arrays, {"activation": activation}, slack=10)
    if bias == (4,):
        arrays[2] = arrays[2].astype("float16")
        compare("linear", arrays, {"activation": activation}, slack=10)


def test_linear_of_one_output_and_of_an_activation_that_is_none():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in ((5, 3), (3, 1), (1,))]
    compare("linear", arrays, {"activation": "relu"})
    with pytest.raises(ValueError, match="activation is one of .*relu.*, not 'rleu'"):
        ops.linear(*arrays, activation="rleu")


def test_kernels_do_not_change_how_a_model_learns():
    "A few steps with kernels and without end in the same parameters."

    def trained():
        nn.init.manual_seed(0) if hasattr(nn, "init") else None
        rng = np.random.default_rng(0)
        model = nn.Sequential(
            nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        for p in model.parameters():
            p.data[...] = rng.normal(size=p.shape)
        x, labels = Tensor(rng.normal(size=(10, 6)).astype("float32")), Tensor(np.arange(10) % 3)
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            for p in model.parameters():
                p.data[...] = p.data - 0.1 * p.grad
                p.grad = None
        return [p.data.numpy().copy() for p in model.parameters()]

    ours = trained()
    with kernels_off():
        theirs = trained()
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# ---- steps of optimizers ----

SETTINGS = {
    "adam": [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled": True},
             {"maximize": True, "eps": 0.1, "betas": (0.5, 0.9)}, {"amsgrad": True}],
    "sgd": [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.1},
            {"momentum": 0.9, "nesterov": True}, {"maximize": True, "weight_decay": 0.1}],
}  # fmt: skip


def stepped(kind, step, start, gradients, settings):
    "The parameter and all that is remembered after a step for each of `gradients`."
    p = np.array(start, order="K")
    states = [np.zeros_like(p) for _ in range(3)]
    settings = dict(settings)
    if settings.pop("amsgrad", False):
        settings["largest"] = states[2]
    for t, g in enumerate(gradients):
        if kind == "adam":
            step(p, g, *states[:2], t + 1, lr=0.05, **settings)
        else:
            step(p, g, states[0] if settings.get("momentum") else None, t == 0, lr=0.05, **settings)
    return [p, *states]


@pytest.mark.parametrize("dtype", ["float16", *FLOATS])
@pytest.mark.parametrize(
    "kind, settings", [(kind, how) for kind, all_of in SETTINGS.items() for how in all_of]
)
def test_a_step_has_the_bits_of_numpys(kind, settings, dtype):
    ours, theirs = {"adam": (optim.adam, _adam.rule), "sgd": (optim.sgd, _sgd.rule)}[kind]
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (7, 5), (1001,), (0, 3)):
        start = rng.normal(size=shape).astype(dtype)
        gradients = rng.normal(size=(6, *shape)).astype(dtype)
        if start.size > 10:
            gradients[2, 0], gradients[3, 1] = np.nan, np.inf
        for layout in ("as it is", "transposed"):
            with np.errstate(all="ignore"):
                how = LAYOUTS[layout](start), [LAYOUTS[layout](g) for g in gradients], settings
                pairs = zip(stepped(kind, ours, *how), stepped(kind, theirs, *how), strict=True)
            for a, b in pairs:
                assert np.array_equal(a, b, equal_nan=True)


def test_a_step_takes_gradients_that_cannot_be_written_and_leaves_them():
    g = np.broadcast_to(np.float32(1.0), (4, 5))
    p, q = np.ones((4, 5), "float32"), np.ones((4, 5), "float32")
    optim.sgd(p, g, None, True, lr=0.5)
    _sgd.rule(q, g, None, True, lr=0.5)
    assert np.array_equal(p, q) and (g == 1).all()


def step_of(kind, p, g, *others, step, **settings):
    "What `step` of this `kind` makes of copies: the parameter, and all that is remembered."
    arrays = [np.array(a, order="K") for a in (p, *others)]
    if kind == "adam":
        m, v, *largest = arrays[1:]
        step(arrays[0], g, m, v, 3, lr=0.05, **(settings | dict(zip(["largest"], largest))))
    else:
        step(arrays[0], g, arrays[1], False, lr=0.05, **settings)
    return arrays


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_step_is_the_loops_where_all_lies_plainly_and_else_the_rules(kind, monkeypatch):
    ours, rule, count, settings = {
        "adam": (optim.adam, _adam.rule, 3, {"weight_decay": 0.1}),
        "sgd": (optim.sgd, _sgd.rule, 1, {"momentum": 0.9}),
    }[kind]
    loop, calls = getattr(optim, f"_{kind}_loop"), []
    monkeypatch.setattr(optim, f"_{kind}_loop", lambda *a: calls.append(a) or loop(*a))
    p, g, *states = np.random.default_rng(0).uniform(0.1, 1, (2 + count, 6, 5)).astype("float32")
    plain = lambda a: a
    wider, one_row = lambda a: a + np.float64(1e-9), lambda a: a[0]
    transposed = lambda a: a.reshape(5, 6).T
    cases = [[odd if i == j else plain for j in range(count)]
             for odd in (wider, transposed) for i in range(count)]  # fmt: skip
    cases = [[plain, *of_states] for of_states in [[plain] * count, *cases]]
    cases += [[odd, *[plain] * count] for odd in (wider, one_row)]
    for of_gradient, *of_states in cases:
        arrays = p, of_gradient(g), *[f(a) for f, a in zip(of_states, states, strict=True)]
        before = len(calls)
        found = step_of(kind, *arrays, step=ours, **settings)
        is_plain = {of_gradient, *of_states} == {plain}
        assert len(calls) == before + is_plain
        for a, b in zip(found, step_of(kind, *arrays, step=rule, **settings), strict=True):
            assert a.dtype == b.dtype and np.array_equal(a, b)


def test_a_state_of_another_shape_is_an_error_and_nothing_is_read_there():
    p, g, m, v = np.ones((4, 3, 5), "float32")
    with pytest.raises(ValueError, match="broadcast"):
        optim.adam(p, g, m, v[0], 1, lr=0.5)
    with pytest.raises(ValueError, match="broadcast"):
        optim.sgd(p, g, m[0], False, lr=0.5, momentum=0.9)


def test_a_largest_that_is_no_number_stays_none():
    p, g, m, v = np.random.default_rng(0).uniform(0.1, 1, (4, 3)).astype("float32")
    largest = np.float32([np.nan, 0.0, 2.0])
    found = step_of("adam", p, g, m, v, largest, step=optim.adam)
    for a, b in zip(found, step_of("adam", p, g, m, v, largest, step=_adam.rule), strict=True):
        assert np.array_equal(a, b, equal_nan=True)
    assert np.isnan(found[3][0]) and found[3][2] == 2


def test_without_momentum_nothing_is_remembered():
    p, g, buffer = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    after = step_of("sgd", p, g, buffer, step=optim.sgd)
    assert np.array_equal(after[1], buffer)
    assert np.array_equal(after[0], step_of("sgd", p, g, buffer, step=_sgd.rule)[0])


# ---- how they run ----


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 300)).astype("float32")
    draw, labels = np.array([5, 6], "uint64"), rng.integers(0, 300, 400)
    tasks = [("softmax", [a], {}), ("gelu", [a], {}), ("dropout_by_draw", [a, draw], {"p": 0.25}),
             ("cross_entropy", [a, labels], {})] * 6  # fmt: skip
    alone = [reading(COMPILED[name], arrays, how) for name, arrays, how in tasks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda task: reading(COMPILED[task[0]], *task[1:]), tasks))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def run(program, **environment):
    "What a fresh Python prints."
    command, env = [sys.executable, "-W", "error", "-c", program], os.environ | environment
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


USE = "import sys, minima as mi; a = 'numba' in sys.modules; y = mi.Tensor([[1.0, -1]]).relu();"


def test_numba_is_imported_at_the_first_use_and_not_before():
    assert run(USE + "print(a, 'numba' in sys.modules, y.tolist())") == "False True [[1.0, 0.0]]"


def test_without_numba_rules_compute():
    program = USE + "print(mi.operators.relu.readings.kernels.find('cpu'), y.tolist())"
    assert run(program, MINIMA_NUMBA="0") == "None [[1.0, 0.0]]"
    assert run("import sys; sys.modules['numba'] = None;" + program) == "None [[1.0, 0.0]]"


def test_machine_code_is_kept_where_the_variable_says(tmp_path):
    run(USE, NUMBA_CACHE_DIR=str(tmp_path))
    assert [*tmp_path.rglob("cpu._relu-*.nbi")]


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(monkeypatch):
    asked = "_compile_for_args", "typeof_pyval"  # by numba, of a loop

    def without_a_place(function, cache=False, **how):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return SimpleNamespace(function=function, how=how, **dict.fromkeys(asked))

    monkeypatch.setattr(numba, "njit", without_a_place)
    loop = cpu.compiled("contract")(len)
    assert loop.function is len
    assert loop.how == {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}


def test_a_loop_is_compiled_as_agreed_and_kept():
    loop = compiled("contract")(_sum_of_two)
    assert loop.targetoptions["nogil"] and loop.targetoptions["error_model"] == "numpy"
    assert loop.targetoptions["fastmath"] == {"contract"}
    assert loop._cache.cache_path


def _sum_of_two(x, y):
    return x + y


class Taker(np.ndarray):
    "An array for which numba has a type, and that takes calls."

    def call_loop(self, loop, *args):
        return loop, [type(a) for a in args]


def test_an_argument_may_take_the_call_whatever_it_passes_for(monkeypatch):
    njit = numba.njit
    monkeypatch.setattr(numba, "njit", lambda f, cache, **how: njit(f, **how))
    loop = compiled()(_sum_of_two)
    assert loop(1.0, y=2.0) == 3.0
    assert loop(1.0, np.ones(2).view(Taker)) == (loop, [float, Taker])
    assert (loop(1.0, np.ones(2)) == 2).all()


@pytest.mark.parametrize(
    "features, chosen, avx, expected",
    [
        ({"avx512vbmi2": True}, None, 1, "+avx512vbmi2,-prefer-256-bit"),
        ({"avx512vbmi2": False}, None, 1, None),
        ({"avx2": True}, None, 1, None),
        ({"avx512vbmi2": True}, "+avx2", 1, "+avx2"),
        ({"avx512vbmi2": True}, "", 1, ""),
        ({"avx512vbmi2": True}, None, 0, None),
        ({"avx2": True}, None, 0, None),
    ],
)
def test_whole_registers_are_for_processors_that_gain_and_who_has_not_chosen(
    monkeypatch, features, chosen, avx, expected
):
    import llvmlite.binding

    class Features(dict):
        def flatten(self):
            return ",".join(f"+{name}" for name, there in self.items() if there)

    config = SimpleNamespace(CPU_FEATURES=chosen, ENABLE_AVX=avx)
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: Features(features))
    monkeypatch.setattr(numba, "config", config)
    compiling._use_whole_registers()
    assert config.CPU_FEATURES == expected


@pytest.mark.parametrize("module, name", [(cpu, "_silu"), (linear, "_gelu"), (cpu, "_softmax")])
def test_loops_use_vectors(module, name):
    "As they do not if one of the functions in them is too long to be put in their place."
    allowed = {"contract", "reassoc"}
    loop = numba.njit(getattr(module, name).py_func, error_model="numpy", fastmath=allowed)
    loop(*np.ones((2, 8, 8) if name == "_softmax" else (2, 64), "float32"))
    (text,) = loop.inspect_llvm().values()
    assert " x float>" in text


@pytest.mark.parametrize("module", [cpu, linear, norms, optim], ids=lambda m: m.__name__)
def test_loops_count(module):
    "What iterates over an array is many times slower: LLVM sees no loop with a known end."
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
            assert ast.unparse(node.iter.func) == "range", ast.unparse(node.iter)


def test_nothing_is_promised_about_nan():
    "No kernel lets the compiler think that there is no NaN, no infinity, or one zero."
    for module in (cpu, linear, optim):
        for function in vars(module).values():
            if isinstance(function, numba.core.dispatcher.Dispatcher):
                allowed = function.targetoptions["fastmath"] or set()
                assert allowed <= {"contract", "reassoc"}, function
                assert not function.targetoptions.get("parallel")


# ---- bits ----


def innermost(function):
    "The loops in `function` that have no loop inside, as syntax trees."
    tree = ast.parse(textwrap.dedent(inspect.getsource(function.py_func)))
    for node in ast.walk(tree):
        if isinstance(node, ast.For) and not any(
            isinstance(inner, ast.For) for part in node.body for inner in ast.walk(part)
        ):
            yield node


@pytest.mark.parametrize("module", [cpu, linear, norms, optim], ids=lambda m: m.__name__)
def test_no_loop_both_writes_and_adds_up(module):
    "Else its sum depends on where arrays lie. The next test cannot place those inside a function."
    for function in vars(module).values():
        if not isinstance(function, numba.core.dispatcher.Dispatcher):
            continue
        for loop in innermost(function):
            nodes = [node for part in loop.body for node in ast.walk(part)]
            stores = {type(n) for n in nodes if isinstance(getattr(n, "ctx", None), ast.Store)}
            adds = any(isinstance(n, ast.AugAssign) and type(n.target) is ast.Name for n in nodes)
            allowed = function.targetoptions["fastmath"] or set()
            assert not (ast.Subscript in stores and adds and "reassoc" in allowed), function


def written(function):
    "The arguments into which `function` writes, by what its text assigns."
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function.py_func))).body
    whose = {a.arg: a.arg for a in tree.args.args}  # names, and of which argument they are a part
    found = set()

    def first(node):
        while isinstance(node, ast.Subscript | ast.Attribute | ast.Call):
            node = node.func if isinstance(node, ast.Call) else node.value
        return getattr(node, "id", None)

    def assign(target, value):
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for pair in zip(target.elts, values):
                assign(*pair)
        elif isinstance(target, ast.Subscript):
            found.add(whose.get(first(target)))
        elif isinstance(value, ast.Subscript | ast.Call | ast.IfExp):
            value = value.orelse if isinstance(value, ast.IfExp) else value
            whose[target.id] = whose.get(first(value))

    for node in ast.walk(tree):
        for target in node.targets if isinstance(node, ast.Assign) else ():
            assign(target, node.value)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript):
            assign(node.target, node.value)
    return found - {None}


@pytest.mark.parametrize("module", [cpu, linear, norms, optim], ids=lambda m: m.__name__)
def test_loops_mark_what_they_write_into(module):
    "A plan relies on it."
    for function in vars(module).values():
        if isinstance(function, numba.core.dispatcher.Dispatcher):
            assert written(function) <= {*function.py_func.__annotations__}, function


def side_by_side(arrays, draw):
    "Copies of `arrays` that lie close to each other, in any order and at any distance."
    order, at, found = draw.permutation(len(arrays)), draw.integers(16), [None] * len(arrays)
    memory = np.zeros(sum(a.size for a in arrays) + 80 * len(arrays), arrays[0].dtype)
    for k in order:
        found[k] = memory[at : at + arrays[k].size].reshape(arrays[k].shape)
        found[k][...] = arrays[k]
        at += arrays[k].size + draw.integers(40)
    return found


DRAW = np.array([1, 2], "uint64"), 9000, 1.2
ROW_LOOPS = {  # by name, a loop over rows, and how many arrays of one row it takes
    "softmax": (cpu._softmax, 2), "softmax, back": (cpu._softmax_back, 3),
    "log_softmax": (cpu._log_softmax, 2), "log_softmax, back": (cpu._log_softmax_back, 3),
    "norm": (lambda x, z, y, weight, bias, mean, r: norms._forward_rows(
        x, x[:0], weight[0], bias[0], DRAW[0], 0, 1.0, 1e-5, z, y, mean[0], r[0]), 7),
    "norm, dropped": (lambda x, residual, z, y, weight, bias, mean, r: norms._forward_rows(
        x, residual, weight[0], bias[0], *DRAW, 1e-5, z, y, mean[0], r[0]), 8),
    "norm, back": (lambda g, h, x, z, dx, dz, weight, dw, db: norms._backward_rows(
        g, h, x, x, weight[0], *DRAW, x[:, 0], x[:, 1], z, dx, dz, dw[0], db[0],
    ), 9),
    "a sum": (lambda x: cpu.total_of(x[0]), 1),
}  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [8, 17, 24])
@pytest.mark.parametrize("name", ROW_LOOPS)
def test_bits_do_not_depend_on_where_arrays_lie(name, width, dtype):
    loop, count = ROW_LOOPS[name]
    rng = np.random.default_rng(0)
    for _ in range(10):
        arrays, results = [*rng.normal(size=(count, 1, width)).astype(dtype)], set()
        for _ in range(30):
            args = side_by_side(arrays, rng)
            result = loop(*args)
            results.add(repr(result).encode() + b"".join(a.tobytes() for a in args))
        assert len(results) == 1
