"Captured steps as CUDA graphs, on a pretended card: the same numbers, and nothing copied."

import gc
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_cuda import GPU, quiet
from test_optim import SETTINGS, label

import minima as mi
from minima import backend as registry
from minima import nn, optim
from minima.autograd import Tensor
from minima.backend import Kernels, register
from minima.capture import CaptureError, capture
from minima.gpu.cublas import Pretended
from minima.gpu.graphs import with_graphs
from minima.gpu.library import Cuda
from minima.testing import mock


@pytest.fixture(scope="module")
def backend():
    mock.reset()
    yield register(with_graphs(Cuda(mock, Pretended(mock.launch), GPU)))
    del registry._by_name[GPU], registry._by_type[mock.ndarray]


@pytest.fixture
def card(backend):
    mock.reset()
    return backend


def model_of(seed=0):
    mi.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3),
        nn.FusedDropoutLayerNorm(8, dropout=0.2), nn.Linear(8, 3),
    ).to(GPU)  # fmt: skip


def batches(count=6, size=16):
    rng = np.random.default_rng(0)
    pairs = ((rng.normal(size=(size, 6)), rng.integers(0, 3, size)) for _ in range(count))
    return [(Tensor(x, device=GPU, dtype="float32"), Tensor(y, device=GPU)) for x, y in pairs]


def half(params):
    optim.clip_grad_norm_(params, 0.5)


def training(model, optimizer, clip=half):
    loss_fn = nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        if clip:
            clip(model.parameters())
        optimizer.step()
        return loss

    return step


def numbers_of(model, optimizer):
    state = [t.numpy() for t in model.state_dict().values()]
    kept = optimizer.state_dict()["state"].values()
    return state + [
        np.asarray(getattr(v, "numpy", lambda v=v: v)()) for s in kept for v in s.values()
    ]


@pytest.mark.parametrize("optimizer, settings", SETTINGS, ids=label)
def test_a_captured_step_computes_the_bits_of_the_step_for_any_optimizer(optimizer, settings, card):
    found, drawn = [], []
    for wrap in (lambda f: f, capture):
        model = model_of()
        its = optimizer(model.parameters(), **settings)
        step = wrap(training(model, its))
        losses = [step(x, y).item() for x, y in batches()]
        found.append([np.array(losses), *numbers_of(model, its)])
        drawn.append(mi.random.default_generator.get_state())
    for plain, captured in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, captured)
    decides = optimizer is optim.RAdam  # whether to rectify, by the number of the step
    assert step.recordings in (1, 1 + decides) and drawn[0] == drawn[1]


def test_a_replay_is_a_few_launches_and_copies_nothing(card):
    model = model_of()
    step = capture(training(model, optim.AdamW(model.parameters(), lr=0.1)))
    data = batches()
    for x, y in data[:2]:
        step(x, y)
    mock.counts.clear()
    step(*data[2])
    assert mock.counts["launches"] <= 6 and quiet()  # two arguments, numbers, the graph, the loss
    assert "go([x0, x1]" in str(step.plan)


def test_a_stream_that_can_be_captured_is_made_once_and_waits_for_no_other(card):
    stream = card.side_stream()
    assert (
        stream.non_blocking
        and card.side_stream() is stream
        and (0, stream.ptr) in (card.cublas.handles)
    )


def test_a_step_of_many_parameters_is_captured_clipping_and_all(card):
    mi.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6),
                          nn.Linear(6, 3)).to(GPU)  # fmt: skip
    step = capture(training(model, optim.SGD(model.parameters(), lr=0.1)))
    for x, y in batches(4):
        step(x, y)
    assert step.recordings == 1 and len([*model.parameters()]) > 8


def test_a_function_that_holds_an_array_of_the_cpu_too_is_a_graph(card):
    first, x = np.arange(3.0), Tensor([1.0, 2.0], device=GPU)  # held in this order

    @capture
    def scaled():
        return x * float(first[1])

    for _ in range(3):
        assert scaled().tolist() == [1.0, 2.0]
    assert scaled.recordings == 1 and "go(" in str(scaled.plan)


@pytest.fixture
def two(backend):
    "The backend with two cards."
    mock.reset(devices=2)
    backend._sides.clear()
    one, backend.devices = backend.devices, [registry.Device(f"{GPU}:{i}") for i in range(2)]
    registry._switch(registry.Kernels.on)
    yield backend
    backend.devices = one
    registry._switch(registry.Kernels.on)


def test_a_graph_is_captured_and_launched_where_its_arrays_are(two):
    model = nn.Linear(6, 3).to(f"{GPU}:1")
    step = capture(training(model, optim.SGD(model.parameters(), lr=0.1)))
    for x, y in batches(4):
        mock.cuda.Device(0).use()
        step(x.to(f"{GPU}:1"), y.to(f"{GPU}:1"))
    assert step.recordings == 1 and two._sides.keys() == {1}


def test_a_schedule_reaches_the_graph(card):
    ends = []
    for wrap in (lambda f: f, capture):
        model = model_of()
        its = optim.Adam(model.parameters(), lr=0.1)
        step, rates = wrap(training(model, its)), optim.StepLR(its, 1, gamma=0.5)
        for x, y in batches():
            step(x, y)
            rates.step()
        ends.append(numbers_of(model, its))
    assert step.recordings == 1
    for plain, captured in zip(*ends, strict=True):
        np.testing.assert_array_equal(plain, captured)


def test_a_schedule_inside_is_refused_and_leaves_no_trace(card):
    model = model_of()
    its = optim.Adam(model.parameters(), lr=0.1)
    plain, rates = training(model, its), optim.StepLR(its, 1, gamma=0.5)

    @capture
    def step(x, y):
        loss = plain(x, y)
        rates.step()
        return loss

    x, y = batches()[0]
    step(x, y)
    before = rates.state_dict(), dict(its.param_groups[0])
    for _ in range(2):
        with pytest.raises(CaptureError, match="step outside"):
            step(x, y)
        assert (rates.state_dict(), its.param_groups[0]) == before and type(rates) is optim.StepLR


def test_shapes_and_modes_have_graphs_of_their_own(card):
    model = model_of()
    step = capture(training(model, optim.SGD(model.parameters(), lr=0.1)))
    for size in (16, 8, 16, 8, 16, 8):
        step(*batches(1, size)[0])
    assert step.recordings == 2
    model[3].p = 0.0  # which drops nothing, and is another graph
    step(*batches(1)[0])
    step(*batches(1)[0])
    assert step.recordings == 3


def test_what_dropout_drops_and_where_gradients_are_clipped_reach_the_graph(card):
    ends = []
    for wrap in (lambda f: f, capture):
        model, bound, losses = model_of(), {"norm": 0.5}, []
        its = optim.Adam(model.parameters(), lr=0.1)
        clip = lambda params, bound=bound: optim.clip_grad_norm_(params, bound["norm"])
        step = wrap(training(model, its, clip))
        for i, (x, y) in enumerate(batches(20)):
            model[3].p, model[4].dropout.p = 0.3 + i / 40, 0.9 - i / 30
            bound["norm"] = 0.5 / (1 + i)
            losses.append(step(x, y).item())
        ends.append([np.array(losses), *numbers_of(model, its)])
    assert step.recordings == 1
    for plain, captured in zip(*ends, strict=True):
        np.testing.assert_array_equal(plain, captured)


def test_a_number_that_a_kernel_takes_by_value_is_compared(card):
    "As kernels of a GPU take the p of dropout: a graph will do as long as it is the same."
    how = {"n": 0.25}
    step, (x, _) = capture(lambda x: x * float(np.float32(how["n"] + 1))), batches(1)[0]
    for n in (0.25, 0.25, 0.25, 0.5, 0.5, 0.25):
        how["n"] = n
        np.testing.assert_array_equal(step(x).numpy(), x.numpy() * np.float32(n + 1))
    assert step.recordings == 2


def test_gradients_that_are_added_up_are_added_where_they_are(card):
    found = []
    for wrap in (lambda f: f, capture):
        model, loss_fn = model_of(), nn.CrossEntropyLoss()

        @wrap
        def step(x, y, model=model, loss_fn=loss_fn):
            loss = loss_fn(model(x), y)
            loss.backward()
            return loss

        for x, y in batches():
            step(x, y)
        found.append([p.grad.data.numpy() for p in model.parameters()])
    for plain, captured in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, captured)
    model.zero_grad()
    step(*batches(1)[0])  # there is nothing to add to, so it runs as it is
    assert all(p.grad is not None for p in model.parameters())


def following(wrap, change, steps=5, **options):
    "Weights after steps that do something with the gradients of the step before."
    mi.manual_seed(0)
    model, loss_fn = nn.Linear(6, 3).to(GPU), nn.CrossEntropyLoss()
    kept = [Tensor(p.data.numpy() * 0, device=GPU) for p in model.parameters()]

    def step(x, y):
        change(model, kept, lambda: loss_fn(model(x), y).backward())
        for p in model.parameters():
            p.data[...] = p.data - p.grad * 0.1

    step = wrap(step, **options)
    model.zero_grad()
    for p in model.parameters():
        p.grad = Tensor(np.ones(p.shape), dtype="float32", device=GPU)
    for x, y in batches(steps):
        step(x, y)
    return step, [p.data.numpy() for p in model.parameters()]


def added_up(model, kept, backward):
    backward()


def zeroed_where_they_are(model, kept, backward):
    model.zero_grad(set_to_none=False)
    backward()


def halved(model, kept, backward):
    for p in model.parameters():
        p.grad[...] = p.grad * 0.5
    backward()


def forgotten(model, kept, backward):
    model.zero_grad()
    backward()


def kept_apart(model, kept, backward):
    model.zero_grad()
    backward()
    for p, before in zip(model.parameters(), kept):
        p.grad = p.grad + before * 0.5
        before[...] = p.grad


def read_and_replaced(model, kept, backward):
    before = [p.grad for p in model.parameters()]
    model.zero_grad()
    backward()
    for p, g in zip(model.parameters(), before):
        p.grad = p.grad + g * 0.5


KEEPING = [added_up, zeroed_where_they_are, halved, forgotten, kept_apart]


@pytest.mark.parametrize("change", KEEPING, ids=lambda f: f.__name__)
def test_gradients_of_the_step_before_are_what_they_would_be(change, card):
    step, captured = following(capture, change)
    for a, b in zip(captured, following(lambda f: f, change)[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert step.recordings == 1


def test_a_gradient_that_is_read_and_replaced_is_refused_and_stays(card):
    with pytest.raises(CaptureError, match="gradient of the step before.* keep it in a Tensor"):
        following(capture, read_and_replaced)
    with pytest.warns(UserWarning, match="gradient of the step before"):
        _, eager = following(capture, read_and_replaced, fallback="eager")
    for a, b in zip(eager, following(lambda f: f, read_and_replaced)[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_that_is_read_is_looked_up_where_it_was(card):
    p = Tensor([1.0, 2.0], device=GPU, requires_grad=True)
    norm = capture(lambda: (p.grad * p.grad).sum())
    for factor in (1.0, 2.0, 3.0, 4.0):
        p.grad = Tensor([factor, 0.0], device=GPU)
        assert norm().item() == factor * factor
    assert type(p.grad) is Tensor
    before = norm.recordings
    p.grad[...] = 5.0
    assert norm().item() == 50.0 and norm.recordings == before


def test_a_gradient_that_is_read_and_forgotten_is_read_anew(card):
    p = Tensor([1.0, 2.0], device=GPU, requires_grad=True)
    g = Tensor([0.0, 0.0], device=GPU)

    @capture
    def taken():
        found = (p.grad * p.grad).sum()
        p.grad = None
        return found

    for factor in (1.0, 2.0, 3.0, 4.0):
        g[...] = factor
        p.grad = g
        assert taken().item() == 2 * factor * factor and p.grad is None
    assert taken.recordings == 1


def test_after_a_refused_recording_no_gradient_is_left_that_was_never_computed(card):
    p = Tensor([1.0, 2.0], device=GPU, requires_grad=True)

    @lambda f: capture(f, fallback="eager")
    def step():
        (p * 3).sum().backward()
        return Tensor(p.grad.numpy(), device=GPU)

    with pytest.warns(UserWarning, match="reading a value"):
        for _ in range(3):
            p.grad = None
            assert step().tolist() == [3.0, 3.0] == p.grad.tolist()


def test_evaluation_is_captured_and_follows_the_weights(card):
    model = model_of().eval()
    predict = capture(mi.no_grad(lambda x: model(x)))
    x = batches(1)[0][0]
    for _ in range(3):
        found = predict(x)
        np.testing.assert_array_equal(found.numpy(), model(x).detach().numpy())
        for p in model.parameters():
            p.data[...] = p.data * 0.5
    before = found.numpy()
    predict(x)
    np.testing.assert_array_equal(found.numpy(), before)  # what was returned is the caller's
    assert predict.recordings == 1


READING = {
    "item": lambda loss: loss.item(),
    "a decision": lambda loss: 1 if loss > 0 else 2,
    "numpy": lambda loss: loss.numpy(),
    "a mask": lambda loss: loss[loss > 0].sum(),
}


@pytest.mark.parametrize("name", READING)
def test_reading_is_refused_and_changes_nothing(name, card):
    model = model_of()
    its = optim.Adam(model.parameters())
    plain = training(model, its)

    @capture
    def step(x, y):
        loss = plain(x, y).detach()
        READING[name](loss)
        return loss

    step(*batches(1)[0])
    before, drawn = numbers_of(model, its), mi.random.default_generator.get_state()
    with pytest.raises(CaptureError, match="captured"):
        step(*batches(1)[0])
    assert mi.random.default_generator.get_state() == drawn and gc.isenabled()
    for a, b in zip(before, numbers_of(model, its), strict=True):
        np.testing.assert_array_equal(a, b)
    assert card.tape is None and mock._now.tape is None
    plain(*batches(1)[0])


def test_what_cannot_be_captured_runs_as_it_is_if_that_is_wished(card):
    @lambda f: capture(f, fallback="eager")
    def double(x):
        return Tensor(x.numpy() * 2, device=GPU)

    x = Tensor([1.0, 2.0], device=GPU)
    double(x)
    with pytest.warns(UserWarning, match="captured"):
        assert double(x).tolist() == [2.0, 4.0]
    assert double(x).tolist() == [2.0, 4.0]


def test_an_array_from_the_host_is_refused_and_a_number_is_not(card):
    large = np.arange(100.0)

    @capture
    def shifted(x, y=None):
        return x + (Tensor(large, device=GPU) if y else 1.0)

    x = Tensor(np.ones(100), device=GPU)
    for _ in range(3):
        assert shifted(x).tolist() == [2.0] * 100
    shifted(x, True)
    with pytest.raises(CaptureError, match=r"shape \(100,\) would be copied from the host"):
        shifted(x, True)


def test_a_graph_gives_its_memory_back(card):
    model = model_of()
    step = capture(training(model, optim.SGD(model.parameters(), lr=0.1)))
    for x, y in batches(3):
        step(x, y)
    plan = weakref.ref(step.plan)
    pool = step.plan.pool
    assert plan() is not None and isinstance(pool, mock.MemoryPool)
    del step, x, y
    gc.collect()
    assert plan() is None


# ---- kernels of optimizers, which take rates by address, and other numbers by value ----


@pytest.fixture
def sgd_kernel(card):
    from minima.optim.optimizers import _sgd

    seen = []

    def kernel(p, g, buffer, first, *, lr, momentum=0.0, **settings):
        seen.append(type(lr))
        momentum = float(np.float64(momentum))
        buffer *= momentum
        buffer += g
        step = lr if hasattr(lr, "shape") else mock.asarray(float(lr))
        p -= mock.multiply(step.astype(p.dtype), buffer)

    _sgd.kernel(GPU)(kernel)
    yield seen
    del _sgd.kernels.known[GPU]


def test_a_kernel_takes_the_rate_by_address_and_the_momentum_by_value(sgd_kernel, card):
    model = nn.Linear(6, 3).to(GPU)
    its = optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    step = capture(training(model, its, clip=False))
    for i, (x, y) in enumerate(batches(8)):
        before = model.weight.data.numpy()
        if i == 4:
            its.param_groups[0]["lr"] = 0.0
        step(x, y)
        assert np.array_equal(before, model.weight.data.numpy()) == (i >= 4)
    assert step.recordings == 1 and sgd_kernel[-1] is mock.ndarray
    its.param_groups[0]["momentum"] = 0.25
    for x, y in batches(3):
        step(x, y)
    assert step.recordings == 2


# ---- the script for those who have a GPU ----


def test_the_script_for_gpus_runs_to_its_end_without_one(torch, tmp_path):
    script, found = Path(__file__).parent.parent / "benchmarks" / "gpu.py", tmp_path / "found.json"
    command = [sys.executable, str(script), "--mock", "--processes", "1", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)  # nobody hangs
    assert not done.returncode, done.stdout + done.stderr
    found = json.loads(found.read_text())
    lines = {line["what"]: line["value"] for line in found["lines"]}
    assert len(lines) > 60 and "pretended" in done.stdout and not found["faults"]
    assert len(found["parts"]) == 9 and {*found["parts"].values()} == {"done"}
    assert lines["operators that agree with PyTorch"] == 1
    assert all(lines[name] == 1 for name in lines if name.startswith("works"))


def test_a_part_of_the_script_that_fails_costs_no_other_its_results(
    gpu_script, monkeypatch, tmp_path
):
    def good(card, report):
        report.line("good", 1.0, goal=2)
        with report.attempt("a case"):
            raise ValueError("wrong\nindeed")
        report.line("good still", 1.0)

    def broken(card, report):
        report.line("before", 1.0)
        with report.attempt("a case"):
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access")
        report.line("never", 1.0)

    def hanging(card, report):
        report.line("begun", 1.0)
        time.sleep(100)

    def dying(card, report):
        os.kill(os.getpid(), signal.SIGSEGV)

    parts = {f.__name__: (f, 1) for f in (good, broken, hanging, dying)} | {"again": (good, 9)}
    monkeypatch.setattr(gpu_script, "PARTS", parts)
    found = gpu_script.main(["--mock", "--json", str(tmp_path / "found.json")])
    assert found == json.loads((tmp_path / "found.json").read_text())
    assert [*found["parts"].values()] == ["done", "FAILED", "stopped after 1 s", "FAILED", "done"]
    said = [line["what"] for line in found["lines"]]
    assert said == ["good", "good still", "before", "begun", "good", "good still"]
    assert found["faults"][0] == "a case: ValueError: wrong indeed" and len(found["faults"]) == 4


def test_the_script_measures_a_graph_that_holds_what_it_works_on(gpu_script, card, monkeypatch):
    class Event:
        times = 0

        def record(self, stream):
            assert stream is mock.cuda.Stream.null
            Event.times += 1
            self.at = Event.times

        def synchronize(self):
            assert self.at

    monkeypatch.setattr(mock.cuda, "Event", Event, raising=False)
    elapsed = lambda start, end: float(end.at - start.at)
    monkeypatch.setattr(mock.cuda, "get_elapsed_time", elapsed, raising=False)
    monkeypatch.setattr(mock.Device, "synchronize", lambda self: None, raising=False)
    real = object.__new__(gpu_script.Card)
    real.backend, real.cupy = card, mock
    x, held = Tensor([1.0, 2.0], device=GPU), []

    def run(x=x):
        y = x + 1
        held.append(weakref.ref(y))
        return y

    launch = real.captured([run])
    del x, run
    gc.collect()
    y = held[-1]()
    assert y is not None and np.isnan(y.numpy()).all()
    assert real.timed(launch) == 1000.0 and Event.times == 36
    assert y.tolist() == [2.0, 3.0]
    with pytest.raises(RuntimeError, match="Capture"):
        real.captured([lambda: y.sum().item()])
    assert mock._now.tape is None and gc.isenabled()


def test_the_report_judges_and_writes_what_numpy_has_computed(gpu_script, tmp_path, capsys):
    report = gpu_script.Report(tmp_path / "found.json")
    cases = [(0.5, {"goal": 0.75}), (0.8, {"goal": 0.75}), (np.nan, {"goal": 0.75})]
    cases += [(2e-5, {"most": 1e-4}), (1.0, {"most": 1e-4}), (np.nan, {"most": 1})]
    for value, bounds in cases:
        report.line("a line", np.float64(value), "TB/s", **bounds)
    again = gpu_script.Report(tmp_path / "found.json")
    good = [False, True, False, True, False, False]
    assert [line["good"] for line in again.found["lines"]] == good
    assert [("met" in said) for said in capsys.readouterr().out.splitlines()] == good
    found = gpu_script.summary(again, mock=False)
    assert "4 goals missed" in capsys.readouterr().out and not found["faults"]


def test_what_the_script_finds_wrong_is_said(gpu_script, card):
    assert gpu_script.furthest([np.ones(2)], [np.array([1.0, np.nan])]) == np.inf
    assert gpu_script.furthest([np.ones(2)], [np.ones(2) * 1.5]) == pytest.approx(1 / 3)
    x = [t.astype("float32") for t in np.random.default_rng(0).normal(size=(2, 4, 8))]
    leaves = [Tensor(a, device=GPU, requires_grad=True) for a in x]
    pull = lambda y, wanted, g: [g]
    for kernel, difference in ((1.0, 0.0), (1.5, 0.5), (np.nan, np.nan)):
        op = lambda x, w, b, k=kernel: (
            Tensor(np.ones((2, 2)), device=GPU) * (k if Kernels.on else 1)
        )
        found = gpu_script.differs([leaves[0], leaves[1], None, None], op, pull)
        np.testing.assert_allclose(found, difference)


def test_rows_for_which_there_is_no_time_are_counted(gpu_script, monkeypatch, tmp_path, capsys):
    def stops(card, work, items, seconds):
        assert seconds < 5
        yield 0, (3, ["one is wrong"])
        raise TimeoutError

    monkeypatch.setattr(gpu_script, "spread", stops)
    report = gpu_script.Report(tmp_path / "found.json", seconds=10)
    gpu_script.table(None, "good ones", keeps=5)(None, report)
    said = capsys.readouterr().out
    assert "no time for more than 1 of" in said and "of 3 cases, 1 of" in said
    assert report.found["lines"][0]["value"] == pytest.approx(2 / 3)
    assert report.found["faults"] == ["good ones: AssertionError: one is wrong"]


def test_the_script_tries_every_case_of_a_row(gpu_script):
    cases = [((2,), {}), ((3,), {}), ((4,), {})]
    row = SimpleNamespace(name="tried", cases=lambda: cases)

    def compare(shapes, settings):
        return {2: "", 3: "differs"}[shapes[0]]

    count, faults = gpu_script.tried(row, compare)
    assert count == 3 and faults == ["tried (3,) {}: differs", "tried (4,) {}: KeyError: 4"]
