"The suite for backends: what it passes, what it finds; and a plug-in that is really installed."

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_operators import ROWS, SMOOTH, normal, numbers

from minima import backend as registry
from minima import algorithms, nn, optim
from minima import operators as ops
from minima.autograd import Tensor, grad
from minima.backend import backend_of, get_backend
from minima.random import manual_seed
from minima.testing import check_backend
from minima.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
PLUG_IN = ROOT / "tests" / "plugins" / "minima_array_api_strict"
STRICT = "array_api_strict"

# The library warns where somebody compares its dtypes with NumPy's.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# What the suite need not find there, and why. A check that passes may not be on the list.
SKIPPED = {"integers and floats": "the standard leaves dtypes of two kinds to each library"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    "The folder that pip has installed the plug-in in, as it would anybody's package."
    source, target = tmp_path_factory.mktemp("plug-in") / "source", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUG_IN, source)  # because a build leaves files behind
    pip = "pip install --quiet --disable-pip-version-check --no-index --no-deps".split()
    where = ["--no-build-isolation", "--target", str(target), str(source)]
    done = subprocess.run([sys.executable, "-m", *pip, *where], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return target


@pytest.fixture(scope="module")
def strict(installed):
    "The backend that the installed package offers, found through its entry point."
    pytest.importorskip(STRICT)
    sys.path.insert(0, str(installed))
    yield get_backend(STRICT)
    sys.path.remove(str(installed))
    del registry._by_type[registry._by_name.pop(STRICT).array_type]
    del sys.modules["minima_array_api_strict"]


def test_an_installed_plug_in_is_imported_when_its_device_is_first_used(installed):
    pytest.importorskip(STRICT)
    program = """
import sys
import minima as mi
device = mi.Device("array_api_strict")
assert not {"array_api_strict", "minima_array_api_strict"} & sys.modules.keys()
x = mi.Tensor([1.0, 2.0], device=device, requires_grad=True)
(x * x).sum().backward()
print(x.grad.tolist(), x.grad.device, sys.modules["minima_array_api_strict"].__file__)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=env, cwd=installed, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.split()[:3] == ["[2.0,", "4.0]", "array_api_strict:0"]
    assert done.stdout.strip().endswith(str(installed / "minima_array_api_strict.py"))


# ---- the operators, on a library that takes nothing beyond the standard ----


def on(device, arrays):
    return [Tensor(a, device=device, requires_grad=a.dtype.kind == "f") for a in arrays]


def equal(there, here, rtol, where="array_api_strict:0"):
    "Whether two tensors, or Nones, have the same numbers and dtype, and the first is at `where`."
    assert (there is None) == (here is None)
    if here is not None:
        assert there.device == where and there.dtype == here.dtype
        there, here = there.data.numpy(), here.data.numpy()
        np.testing.assert_allclose(there, here, rtol, atol=rtol, strict=True)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_operator_has_numpys_value_and_gradients(row, dtype, rtol, strict):
    for shapes, settings in row.cases():
        arrays = [a.astype(dtype) if a.dtype.kind == "f" else a for a in numbers(row.make, shapes)]
        here, there = on("cpu", arrays), on(STRICT, arrays)
        expected, found = row.ours_with(settings)(*here), row.ours_with(settings)(*there)
        equal(found, expected, rtol)
        assert found.requires_grad == expected.requires_grad
        if found.requires_grad:
            (g,) = numbers(normal, [found.shape])
            expected.backward(g.astype(expected.dtype))
            found.backward(Tensor(g.astype(expected.dtype), device=STRICT))
            for a, b in zip(there, here):
                equal(a.grad, b.grad, rtol)


def compare_second_derivatives(row, device, where):
    "Assert that those of an operator are the same on a `device` and on the CPU."
    shapes, settings = row.cases()[-1]
    arrays, results = numbers(row.make, shapes), []
    for place in (device, "cpu"):
        leaves = on(place, arrays)
        wanted, y = [t for t in leaves if t.requires_grad], row.ours_with(settings)(*leaves)
        if not y.requires_grad:
            return
        weights = Tensor(np.linspace(1, 2, y.size).reshape(y.shape), device=place)
        first = grad(y, wanted, weights, create_graph=True)
        total = sum((g * g).sum() for g in first)
        results.append(grad(total, wanted, allow_unused=True) if total.requires_grad else [])
    for a, b in zip(*results, strict=True):
        equal(a, b, 1e-9, where)


@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
def test_second_derivatives_are_numpys(row, strict):
    compare_second_derivatives(row, STRICT, "array_api_strict:0")


REFUSED = {
    "an integer times a float": (lambda x, i: x * i, "two kinds"),
    "a quotient of integers": (lambda x, i: i / i, "integers are not divided"),
    "a mean of integers": (lambda x, i: i.mean(), "integers have no mean"),
    "a slice beyond the end": (lambda x, i: x[:9], "bounds of slices are inside"),
    "float16": (lambda x, i: x.to("float16"), "no such dtype"),
}


@pytest.mark.parametrize("f", [f for f, _ in REFUSED.values()], ids=REFUSED)
def test_what_the_library_refuses_it_still_refuses(f, strict):
    "An entry that works here is to be taken off the list, and into the tests above."
    x, i = np.ones((2, 3), "float32"), np.ones((2, 3), "int64")
    f(Tensor(x), Tensor(i))
    with pytest.raises((TypeError, IndexError)):
        f(Tensor(x, device=STRICT), Tensor(i, device=STRICT))


def test_a_gradient_never_is_somebody_elses_memory(strict):
    x = Tensor(np.ones(4), device=STRICT, requires_grad=True)
    g = Tensor(np.ones((2, 2)), device=STRICT)
    for _ in range(2):
        x.reshape(2, 2).backward(g)
    assert x.grad.tolist() == [2.0] * 4 and g.tolist() == [[1.0, 1.0]] * 2


@pytest.mark.parametrize(
    "make",
    [lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: optim.AdamW(p, lr=0.1),
     lambda p: optim.RMSProp(p, centered=True), lambda p: optim.NAdam(p)],
    ids=["SGD", "AdamW", "RMSProp", "NAdam"],
)  # fmt: skip
def test_a_model_of_layers_trains_as_on_the_cpu(make, strict):
    rng, states = np.random.default_rng(0), []
    model = nn.Sequential(
        nn.Linear(4, 8, dtype="float64"), nn.BatchNorm1d(8, dtype="float64"), nn.ReLU(),
        nn.LayerNorm(8, dtype="float64"), nn.Dropout(0.3), nn.Linear(8, 3, dtype="float64"),
    )  # fmt: skip
    start = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    x, labels = rng.normal(size=(16, 4)), rng.integers(0, 3, 16)
    for device in ("cpu", STRICT):
        model.load_state_dict(start)
        model.to(device)
        manual_seed(0)
        optimizer, loss_fn = make(model.parameters()), nn.CrossEntropyLoss()
        batch, target = Tensor(x, device=device), Tensor(labels, device=device)
        for _ in range(3):
            optimizer.zero_grad()
            loss_fn(model(batch), target).backward()
            optim.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
        assert {backend_of(t.array).name for t in model.state_dict().values()} == {device}
        states.append({k: v.numpy() for k, v in model.state_dict().items()})
    for name, here in states[0].items():
        np.testing.assert_allclose(states[1][name], here, rtol=1e-9, atol=1e-12, strict=True)


# ---- the suite passes what is right ----


@pytest.mark.parametrize("scale", ["expected", "measured"])
def test_masks_of_gyro_dropout_are_where_the_input_is(scale, strict):
    drop, x = nn.GyroDropout(10, sigma=8, tau=4, scale=scale), np.ones((5, 6))
    drop.schedule.clock = "hand"
    (there,), (here,) = on(STRICT, [x]), on("cpu", [x])
    equal(drop(there), drop(here), 1e-6)


@pytest.mark.parametrize("make", [
    lambda: algorithms.EMA("2ba"), lambda: algorithms.MixUp(1.0, interpolate_loss=True),
], ids=["ema", "mixup of losses"])  # fmt: skip
def test_methods_of_training_work_where_the_model_is(make, strict, tmp_path):
    found, rng = [], np.random.default_rng(0)
    x, y = Tensor(rng.normal(size=(9, 4))), Tensor(rng.integers(0, 3, 9))
    for device in ("cpu", STRICT):
        manual_seed(0)
        model = nn.Linear(4, 3, bias=False).double()
        trainer = Trainer(
            model, [(x[:5], y[:5]), (x[5:], y[5:])], [(x, y)], 2,
            algorithms=make(), device=device, metrics={},
            optimizers=optim.SGD(model.parameters(), lr=0.1), progress_bar=False, lint=False,
        )  # fmt: skip
        trainer.fit()
        trainer.load_checkpoint(trainer.save_checkpoint(tmp_path / device))
        trainer.fit("1ep")
        (at,) = {backend_of(t.array).name for t in model.state_dict().values()}
        assert at == device
        found.append(trainer.history["loss"] + trainer.history["eval_loss"])
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_the_suite_passes_numpy_and_prints_a_line_for_each_check(capsys):
    passed = check_backend("cpu")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(passed) > 100 and {line.split()[-1] for line in lines} == {"passed"}
    assert check_backend(get_backend("cpu"), verbose=False) == passed
    assert not capsys.readouterr().out


def test_the_suite_passes_the_plug_in_but_for_what_is_listed(strict, capsys):
    passed = check_backend(strict, skip=SKIPPED)
    assert {*check_backend("cpu", verbose=False)} - {*passed} == SKIPPED.keys()
    assert f"skipped: {SKIPPED['integers and floats']}" in capsys.readouterr().out


def test_a_list_of_skips_cannot_rot(strict):
    wrong = SKIPPED | {"tanh": "too hard", "no such check": "why not"}
    with pytest.raises(AssertionError) as found:
        check_backend(strict, skip=wrong, verbose=False)
    head, *faults = str(found.value).splitlines()
    assert "faults: 2," in head and STRICT in head
    assert "tanh: it passes, so do not skip it because of 'too hard'" in faults[0]
    assert "no such check: there is no such check" in faults[1]


LOSSES = {
    # of scores (or probabilities), labels, truth values and weights of classes
    "cross_entropy": lambda F, z, p, labels, yes, w: F.cross_entropy(z, labels),
    "ignored": lambda F, z, p, labels, yes, w: F.cross_entropy(z, labels, w, 1, "mean", 0.1),
    "probabilities": lambda F, z, p, labels, yes, w: F.cross_entropy(z, p, w),
    "nll_loss": lambda F, z, p, labels, yes, w: F.nll_loss(z, labels, w, 1),
    "logits": lambda F, z, p, labels, yes, w: F.binary_cross_entropy_with_logits(z, yes, w),
    "binary": lambda F, z, p, labels, yes, w: F.binary_cross_entropy(p, yes, w),
    "kl_div": lambda F, z, p, labels, yes, w: F.kl_div(z, yes, "batchmean"),
    "smooth": lambda F, z, p, labels, yes, w: F.smooth_l1_loss(z, yes) + F.l1_loss(z, p),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_numpys_with_all_their_options(name, strict):
    rng = np.random.default_rng(0)
    inputs = [normal(rng, (4, 3)), rng.uniform(0.1, 0.9, (4, 3)), np.array([0, 1, 2, 1])]
    inputs += [rng.random((4, 3)) < 0.5, np.array([0.5, 1.0, 2.0])]
    found = []
    for device in ("cpu", STRICT):
        z, p, *others = (Tensor(a, device=device) for a in inputs)
        z, p = z.requires_grad_(), p.requires_grad_()
        loss = LOSSES[name](nn.functional, z, p, *others)
        found.append([loss, *grad(loss, [z, p], allow_unused=True)])
    for ours, theirs in zip(*found, strict=True):
        if ours is not None:
            np.testing.assert_allclose(theirs.detach().to("cpu"), ours.detach(), rtol=1e-12)


def test_the_suite_reads_every_rule(strict):
    read, rules = set(), {}
    for module in (page for page in vars(ops).values() if inspect.ismodule(page)):
        rules |= {f.rule.__code__: name for name, f in vars(module).items() if hasattr(f, "rule")}
    sys.setprofile(lambda frame, event, _: read.add(frame.f_code))
    try:
        check_backend(strict, skip=SKIPPED, verbose=False)
    finally:
        sys.setprofile(None)
    assert len(rules) > 80 and not [name for code, name in rules.items() if code not in read]


def test_an_unknown_device_is_not_a_list_of_faults():
    with pytest.raises(RuntimeError, match="unknown device 'abacus'"):
        check_backend("abacus", verbose=False)


# ---- and finds what is wrong ----


def forgetful(backend, add_at):
    "NumPy's +=, which adds once where an index is named twice."

    def add(array, key, values):
        key = tuple(k if isinstance(k, slice) else backend.to_numpy(k) for k in key)
        host = backend.to_numpy(array)
        host[key] += backend.to_numpy(values)
        array[...] = backend.asarray(host)

    return add


def next_axis(backend, sum):
    def wrong(a, axis=None, **settings):
        return sum(a, axis=(axis + 1) % a.ndim if isinstance(axis, int) else axis, **settings)

    return wrong


def then(change):
    "A function that changes what the right one returns."
    return lambda backend, right: lambda *a, **k: change(backend, right(*a, **k))


METHODS = {  # the method, its wrong version, and the checks that find it
    "add_at adds once": (
        "add_at", forgetful, {"picking and adding", "take", "getitem by an array"},
    ),
    "get_at in reverse": (
        "get_at", then(lambda b, y: b.xp.flip(y)), {"picking and adding", "getitem by a mask"},
    ),
    "asarray forgets the dtype": (
        "asarray", lambda b, right: lambda data, dtype=None, index=0: right(data),
        {"Python's numbers"},
    ),
    "to_numpy turns": ("to_numpy", then(lambda b, y: y.T), {"arrays come and go", "transpose"}),
    "to_numpy widens": ("to_numpy", then(lambda b, y: y * 1.0), {"arrays come and go", "argmax"}),
    "copy shares": ("copy", lambda b, right: lambda array: array, {"copies"}),
    "device_of says cpu": (
        "device_of", then(lambda b, y: "cpu"), {"arrays are known by type", "exp"},
    ),
    "device_count says two": (
        "device_count", lambda b, _: lambda: 2, {"arrays are known by type"},
    ),
    "is_floating of integers": ("is_floating", lambda b, _: lambda dtype: True, {"argmax"}),
    "check_indices refuses the last": (
        "check_indices", lambda b, right: lambda array, size: right(array, size - 1),
        {"indices out of range", "training with SGD"},
    ),
    "check_indices reads": (
        "check_indices", lambda b, _: lambda array, size: b.to_numpy(array), {"training with Adam"},
    ),
}  # fmt: skip
NAMES = {
    "a sum over the next axis": ("sum", next_axis, {"softmax", "training with SGD"}),
    "a result on the CPU": ("exp", then(lambda b, y: b.to_numpy(y)), {"exp", "sigmoid"}),
    "a name that lacks": ("pad", None, {"names", "pad"}),
    "argmax in int32": ("argmax", then(lambda b, y: b.xp.astype(y, "int32")), {"argmax"}),
    "exp in float32": (
        "exp", then(lambda b, y: b.xp.astype(b.xp.astype(y, "float32"), y.dtype)), {"exp"},
    ),
    "swapaxes does nothing": ("swapaxes", lambda b, _: lambda a, i, j: a, {"swapaxes", "matmul"}),
    "arange from 1": ("arange", then(lambda b, y: y + 1), {"cross_entropy", "gather"}),
    "an argsort that is not stable": (
        "argsort", then(lambda b, y: b.xp.flip(y, axis=-1)), {"argsort", "topk"},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # what is wrong may well warn
@pytest.mark.parametrize("fault", METHODS | NAMES)
def test_a_fault_is_found(fault, strict, monkeypatch):
    place = strict if fault in METHODS else strict.xp
    name, wrong, expected = (METHODS | NAMES)[fault]
    if wrong:
        monkeypatch.setattr(place, name, wrong(strict, getattr(place, name)))
    else:
        monkeypatch.delattr(place, name)
    with pytest.raises(AssertionError) as found:
        check_backend(strict, skip=SKIPPED, verbose=False)
    blamed = {line.split(":")[0].strip() for line in str(found.value).splitlines()[1:]}
    assert expected <= blamed, blamed


# ---- models ----


def test_hooks_state_dicts_embeddings_and_summaries_work_there_as_on_numpy(strict):
    seen, tables = [], []
    for device in ("cpu", STRICT):
        manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3), nn.BatchNorm1d(3))
        state = model.state_dict()
        model.to(device)
        model[1].register_full_backward_hook(
            lambda m, i, o: seen.append([g.tolist() for g in (*i, *o)]) or (i[0] * 2,)
        )
        assert model.load_state_dict(state) == ([], [])
        words = Tensor([3, 1, 0, 3], device=device)
        tables.append(repr(model.summary(words)))
        upstream = normal(np.random.default_rng(1), (4, 3))
        model(words).backward(Tensor(upstream, device=device, dtype="float32"))
        seen.append([p.grad.tolist() for p in model.parameters()])
        model.zero_grad(set_to_none=False)
        assert not any(p.grad.any() for p in model.parameters())
    assert tables[0] == tables[1]
    for one, other in zip([*seen[0], *seen[1]], [*seen[2], *seen[3]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
