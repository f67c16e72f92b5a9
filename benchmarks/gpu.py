"""All that can only be known on a GPU, in one call: is it right, and how fast is it?

    python benchmarks/gpu.py [--only WORD ...] [--json FILE] [--seconds N] [--processes N] [--mock]

In this order: what machine this is, and whether the backend works at all; whether every kernel
compiles; what the machine can do (copies, products); whether every kernel computes what its rule
computes; how fast dropout with layer norm is beside PyTorch, as it is and compiled; how fast small
models train, as they are and as CUDA graphs; what a launch costs; what the kernel's variants cost;
and whether every operator computes what PyTorch computes. Goals were set before anything was
measured.

Each part runs in a process of its own, with a limit of time: a part that fails, hangs, or breaks
the card's context costs its own results and no others. What was found is written to the file after
each line. Without PyTorch its columns are left out, and operators are compared with the CPU.

How it is measured: work is captured and replayed, so that the host's time does not count where it
is not asked for; buffers rotate and are together larger than the cache; numbers are random; memory
is full of NaN before results are checked; medians. With `--mock` everything runs on a pretended
card with small shapes, to see that the script is whole; its times mean nothing.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep

os.environ.setdefault("MINIMA_NUMBA", "0")  # the CPU is only asked what is right

import numpy as np

try:
    import torch
except ImportError:
    torch = None

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from models import layers, step_of

import minima as mi
from minima import nn, optim
from minima import operators as ops
from minima.autograd import Tensor, grad
from minima.backend import kernels_off, register
from minima.gpu import available

P, EPS, SETS = 0.1, 1e-5, 4
HALVES = ("float16", "bfloat16")
FORK = multiprocessing.get_context("fork")  # before it, nobody may have asked for a GPU

# ---- the card: what is different between a real and a pretended one ----


class Card:
    "A GPU: how work is captured and timed on it."

    ours, processes, judges = "cuda", 12, True
    shapes = {(8192, 4096): 4, (4096, 8192): 4, (8192, 1024): 8}  # and how often in a graph
    size, products, calls, rounds = 1 << 28, 8192, 200, 9

    def __init__(self):
        from minima import gpu

        self.backend = register(gpu.backend)  # found by its name where minima is installed only
        self.cupy = self.backend.cupy
        self.theirs = "cuda" if torch and torch.cuda.is_available() else None

    def name(self):
        "What it is called, and with which versions it was used."
        runtime = self.cupy.cuda.runtime
        card = runtime.getDeviceProperties(0)["name"].decode()
        versions = f"driver for CUDA {runtime.driverGetVersion()}, CuPy {self.cupy.__version__}"
        return f"{card}, {versions}, NumPy {np.__version__}, PyTorch {torch and torch.__version__}"

    def wait(self):
        "Until all is done."
        self.cupy.cuda.Device().synchronize()

    def captured(self, runs):
        "All `runs`, of minima's, as one graph: what launches it, and holds what it works on."
        from minima.gpu.graphs import capturing

        stream, null = self.backend.side_stream(), self.cupy.cuda.Stream.null
        self.wait()
        with stream:
            for run in runs:
                run()
            stream.synchronize()
        with capturing(self.backend, None) as found:
            kept = [run() for run in runs]
        graph, pool = found
        return lambda held=(runs, kept, pool): graph.launch(null)

    def captured_of_torch(self, runs):
        "All `runs`, of PyTorch's, as one graph."
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        self.wait()
        with torch.cuda.stream(stream):
            for run in [*runs] * 3:
                run()
        self.wait()
        with torch.cuda.graph(graph, stream=stream):
            kept = [run() for run in runs]
        return lambda held=(runs, kept): graph.replay()

    def timed(self, launch, rounds=15):
        "The median time of `launch`, as the card counts it, in microseconds."
        cuda, times = self.cupy.cuda, []
        for _ in range(3 + rounds):  # the first ones warm up
            start, end = cuda.Event(), cuda.Event()
            start.record(cuda.Stream.null)
            launch()
            end.record(cuda.Stream.null)
            end.synchronize()
            times.append(cuda.get_elapsed_time(start, end) * 1e3)
        return median(times[3:])

    def poison(self):
        "Leave memory full of NaN to whoever takes it next."
        for size in (1 << 10, 1 << 16, 1 << 20, 1 << 24):
            arrays = [self.cupy.full(size // 4, np.nan, "float32") for _ in range(8)]
            del arrays


class Pretended(Card):
    "No GPU at all."

    ours, processes, judges = "mock", 0, False
    shapes, size, products, calls, rounds = {(8, 64): 1, (4, 128): 1}, 1 << 10, 16, 2, 1

    def __init__(self):
        from minima.gpu import cublas, graphs, library
        from minima.testing import mock

        card = library.Cuda(mock, cublas.Pretended(mock.launch), self.ours)
        self.backend, self.cupy = register(graphs.with_graphs(card)), mock
        self.theirs = "cpu" if torch else None

    def name(self):
        return "a pretended card, whose times mean nothing"

    def wait(self):
        pass

    def captured_of_torch(self, runs):
        return lambda: [run() for run in runs]

    def timed(self, launch, rounds=3):
        start = perf_counter()
        launch()
        return (perf_counter() - start) * 1e6

    def poison(self):
        pass


# ---- the report ----


class Report:
    "Lines as they come: what, how much, of what, and the goal. Each is written down at once."

    def __init__(self, path, judges=True, seconds=float("inf")):
        self.path, self.judges, self.until = Path(path), judges, monotonic() + seconds
        self.found = {"card": None, "parts": {}, "lines": [], "faults": []}
        if self.path.exists():
            self.found = json.loads(self.path.read_text())

    def left(self):
        "How many seconds."
        return self.until - monotonic()

    def write(self):
        "Write down all that was found so far."
        self.path.write_text(json.dumps(self.found, indent=1))

    def line(self, what, value, unit="", goal=None, more="", most=None):
        "Print and keep a line; `goal` is the least value that is good, `most` the greatest."
        goal, most = (goal, most) if self.judges else (None, None)
        value = float(value)  # a number of NumPy's makes a bool that no file takes
        good = (goal is None or value >= goal) and (most is None or value <= most)
        bounds = [
            f"at {word} {n:g}" for word, n in (("least", goal), ("most", most)) if n is not None
        ]
        verdict = f"{', '.join(bounds)}: {'met' if good else 'MISSED'}" if bounds else ""
        print(f"  {what:58} {value:10.4g} {unit:9} {verdict} {more}".rstrip(), flush=True)
        line = dict(what=what, value=value, unit=unit, goal=goal, most=most, more=more, good=good)
        self.found["lines"].append(line)
        self.write()

    def fault(self, what, error):
        "Print and keep what went wrong."
        text = f"{what}: {said(error)}"
        print(f"  FAILED {text}", flush=True)
        self.found["faults"].append(text)
        self.write()

    @contextmanager
    def attempt(self, what):
        "Note what fails in a `with` block, and go on; unless the card's context is broken."
        try:
            yield
        except Exception as error:
            self.fault(what, error)
            traceback.print_exc()
            if is_broken(error):
                raise


def said(error):
    "What an error says, in a line."
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def is_broken(error):
    "Whether nothing more can be done in this process: every call would fail like this one."
    signs = (
        "IllegalAddress",
        "illegal memory",
        "LaunchFailure",
        "Misaligned",
        "device-side assert",
    )
    return any(sign in str(error) for sign in (*signs, "unspecified launch failure"))


def spread(card, work, items, seconds):
    "What `work(card, item)` returns for each of the `items`, by several processes: (item, result)."
    if not card.processes:
        yield from ((item, _work(card, work, item)) for item in items)
        return
    pool = ProcessPoolExecutor(card.processes, FORK)
    try:
        jobs = {pool.submit(_work, card, work, item): item for item in items}
        for job in as_completed(jobs, timeout=max(1, seconds)):
            yield jobs[job], job.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _work(card, work, item):
    return work(the(card), item)


@cache
def the(card):
    "The card of this kind, made when this process first wants it: who forks may have none."
    return card()


# ---- does it work at all ----


def machine(card, report):
    "What it is called, and one of everything that the backend does."
    card = the(card)
    report.found["card"] = card.name()
    print(f"  {card.name()}")
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=4), rng.normal(size=(300, 70)).astype("float32")
    a, b = rng.normal(size=(2, 33, 17)), rng.normal(size=(17, 21))
    there = lambda x, dtype="float32": Tensor(x, device=card.ours).to(dtype)
    equal = lambda x, y, tolerance=0.0: np.testing.assert_allclose(x, y, tolerance, tolerance)

    def comes_back(x):
        equal(Tensor(x, device=card.ours).numpy(), x)

    def multiplies(dtype, tolerance):
        product = there(a, dtype) @ there(b, dtype)
        equal(product.to("float64").numpy(), a @ b, tolerance)

    def is_captured():
        double = mi.capture(lambda x: x * 2 + 1)
        for i in range(4):
            equal(double(there(large + i)).numpy(), (large + i) * 2 + 1, 1e-6)
        assert double.recordings == 1, f"{double.recordings} recordings"

    def shares():
        x = there(large)
        y = torch.from_dlpack(x)
        y += 1
        equal(x.numpy(), large + 1, 1e-6)
        equal(Tensor(y, device=card.ours).numpy(), large + 1, 1e-6)

    def follows_back():
        x = Tensor(large, requires_grad=True)
        (x.to(card.ours) * 3).sum().backward()
        equal(x.grad.numpy(), np.full_like(large, 3))

    checks = {
        "a small array goes along with a launch": lambda: comes_back(small),
        "a large array is fetched": lambda: comes_back(large),
        "a gradient follows back": follows_back,
        "products of float64": lambda: multiplies("float64", 1e-12),
        "products of float32": lambda: multiplies("float32", 1e-4),
        "products of float16": lambda: multiplies("float16", 2e-2),
        "products of bfloat16": lambda: multiplies("bfloat16", 2e-1),
        "a captured function is a graph": is_captured,
    }
    if card.theirs == "cuda":
        checks["memory is shared with PyTorch"] = shares
    for what, check in checks.items():
        with report.attempt(what):
            start = perf_counter()
            check()
            report.line(f"works: {what}", 1, goal=1, more=f"{perf_counter() - start:.1f} s")


def compiled(card, name):
    "Compile the kernel `name`, for which CuPy looks on the disk from now on."
    from minima.kernels.launches import _compiled

    start = perf_counter()
    try:
        if card.judges:  # a pretended one has no compiler
            _compiled(name)
    except Exception as error:
        return said(error), perf_counter() - start
    return "", perf_counter() - start


def kernels_compile(card, report):
    "Every instance of every kernel, by several processes."
    from minima.kernels.launches import instances

    names, faults, seconds, start = instances(), [], 0.0, perf_counter()
    for name, (fault, took) in spread(card, compiled, names, report.left()):
        seconds += took
        if fault:
            faults.append(name)
            report.fault(name, RuntimeError(fault))
    report.line("kernels that compile", 1 - len(faults) / len(names), goal=1,
                more=f"of {len(names)}, {seconds / len(names):.1f} s each, "
                     f"{perf_counter() - start:.0f} s together")  # fmt: skip


# ---- what the machine can do ----


def copies(card):
    "The rate of copies, in bytes per microsecond."
    n, rng = card.size // 4, np.random.default_rng(0)
    sources = [card.backend.xp.asarray(rng.standard_normal(n, "float32")) for _ in range(2)]
    targets = [card.backend.xp.empty_like(a) for a in sources]
    runs = [lambda a=a, b=b: b.__setitem__(..., a) for a, b in zip(sources, targets)]
    return 2 * 4 * n * len(runs) / card.timed(card.captured(runs))


def ceilings(card, report):
    "The rates of copies and of products."
    card = the(card)
    n = card.products
    numbers = np.random.default_rng(0).standard_normal((n, n), "float32")
    for dtype in ("float32", *HALVES):
        with report.attempt(f"product of {n} x {n}, {dtype}"):
            a, more = Tensor(numbers, device=card.ours).to(dtype), ""
            time = card.timed(card.captured([lambda a=a: a @ a]))
            rate = 2 * n**3 / time / 1e6
            if card.theirs:
                b = torch.tensor(numbers, device=card.theirs).to(getattr(torch, dtype))
                theirs = card.timed(card.captured_of_torch([lambda b=b: b @ b]))
                more = f"torch {rate * time / theirs:.4g}"
            report.line(f"product of {n} x {n}, {dtype}", rate, "TFLOP/s", more=more)
    with report.attempt("copies"):
        report.line("copy", copies(card) / 1e6, "TB/s")


# ---- is it right ----


def furthest(found, expected):
    "The largest difference between arrays, as a part of the largest number; inf for NaN."
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        a, b = (np.asarray(0.0 if x is None else x, "float64") for x in (a, b))
        a, b = np.broadcast_arrays(a, b) if 0 in (a.ndim, b.ndim) else (a, b)
        if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
            return np.inf
        finite = np.isfinite(b)
        if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            return np.inf
        if finite.any():
            scale = max(1.0, np.abs(b[finite]).max())
            worst = max(worst, np.abs(a[finite] - b[finite]).max() / scale)
    return worst


def drawn(shape):
    "A cotangent of this shape."
    return np.random.default_rng(0).normal(size=shape)


def on_device(f, arrays, device, dtype):
    "The value and the gradients of `f` on a device, as NumPy's arrays, wide."
    leaves = [Tensor(a, device=device) for a in arrays]
    leaves = [t.to(dtype) if t.dtype.kind == "f" else t for t in leaves]
    for t in leaves:
        t.requires_grad_(t.dtype.kind in "fV" and str(t.dtype) != "bool")
    y = f(*leaves)
    found = [y]
    if y.requires_grad:
        g = Tensor(drawn(y.shape), device=device, dtype="float32").to(y.dtype)
        found += grad(y, [t for t in leaves if t.requires_grad], g, allow_unused=True)
    return [t if t is None else wide(t.detach()).numpy() for t in found]


def wide(t):
    "`t`, in a dtype that NumPy knows."
    return t.to("float32") if t.dtype.kind == "V" else t


def of_torch(f, arrays, device):
    "The same of PyTorch's `f`, in float32."
    leaves = [torch.tensor(np.array(a), device=device) for a in arrays]
    leaves = [t.float().requires_grad_() if t.is_floating_point() else t for t in leaves]
    y = f(*leaves)
    found = [y]
    if y.requires_grad:
        wanted = [t for t in leaves if t.requires_grad]
        g = torch.tensor(drawn(tuple(y.shape)), device=device, dtype=y.dtype)
        found += torch.autograd.grad(y, wanted, g, allow_unused=True)
    return [t if t is None else t.detach().cpu().numpy() for t in found]


def tried(row, compare):
    "How many cases of a row `compare(shapes, settings)` has tried, and what was wrong with them."
    count, faults = 0, []
    for shapes, settings in row.cases():
        count += 1
        try:
            fault = compare(shapes, settings)
        except Exception as error:
            fault = said(error)
            if is_broken(error):
                raise
        if fault:
            faults.append(f"{row.name} {shapes} {settings}: {fault}")
    return count, faults


def operators_agree(card, i):
    "Compare an operator with PyTorch's, or the CPU's if PyTorch has it not."
    from test_operators import ROWS, numbers

    row = ROWS[i]

    def compare(shapes, settings):
        arrays = numbers(row.make, shapes)
        found = on_device(row.ours_with(settings), arrays, card.ours, "float32")
        try:
            expected = of_torch(row.theirs_with(torch, settings), arrays, card.theirs or "cpu")
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            if is_broken(error):
                raise
            expected = on_device(row.ours_with(settings), arrays, "cpu", "float32")
        difference = furthest(found, expected)
        return f"differs by {difference:.2g}" if difference > 2e-4 else ""

    card.poison()
    return tried(row, compare)


def kernels_agree(card, i):
    "Compare the kernel of an operator, if it has one, with its rule."
    from test_operators import ROWS, numbers

    row, count, faults = ROWS[i], 0, []
    op = getattr(ops, row.name.partition(",")[0], None)
    kernels = getattr(getattr(op, "readings", None), "kernels", None)
    if kernels is None or kernels.find(card.backend.name) is None:
        return 0, []
    for dtype, tolerance in (("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 4e-2)):

        def compare(shapes, settings, dtype=dtype, tolerance=tolerance):
            arrays, both = numbers(row.make, shapes), []
            for context in (nullcontext, kernels_off):
                card.poison()
                with context():
                    both.append(on_device(row.ours_with(settings), arrays, card.ours, dtype))
            difference = furthest(*both)
            return f"in {dtype} differs by {difference:.2g}" if difference > tolerance else ""

        found = tried(row, compare)
        count, faults = count + found[0], faults + found[1]
    return count, faults


def table(work, what, keeps=0):
    "A part that tries every row of the table of operators by `work`, and `keeps` some seconds."

    def part(card, report):
        from test_operators import ROWS

        count, wrong, rows = 0, 0, 0
        try:
            for _, (tried, faults) in spread(card, work, range(len(ROWS)), report.left() - keeps):
                count, wrong, rows = count + tried, wrong + len(faults), rows + 1
                for fault in faults:
                    report.fault(what, AssertionError(fault))
        except TimeoutError:
            print(f"  no time for more than {rows} of {len(ROWS)} rows")
        report.line(what, 1 - wrong / count if count else 0.0, goal=1,
                    more=f"of {count} cases, {rows} of {len(ROWS)} rows")  # fmt: skip

    return part


def trained(device, make):
    "The weights after five steps, captured where it can be."
    mi.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 32), nn.GELU(), nn.FusedDropoutLayerNorm(32), nn.Linear(32, 5)
    )
    model, rng = model.to(device), np.random.default_rng(0)
    step = mi.capture(step_of(model, make(model.parameters(), lr=0.01), nn.CrossEntropyLoss()))
    for _ in range(5):
        x, y = rng.normal(size=(64, 20)).astype("float32"), rng.integers(0, 5, 64)
        step(Tensor(x, device=device), Tensor(y, device=device))
    return [p.data.numpy() for p in model.parameters()]


kernels_table = table(kernels_agree, "kernels that agree with their rules", keeps=25)


def kernels(card, report):
    "Every kernel beside its rule, and captured steps beside the CPU's."
    kernels_table(card, report)
    card = the(card)
    for make in (optim.SGD, optim.Adam, optim.AdamW):
        with report.attempt(f"captured steps of {make.__name__}"):
            worst = furthest(trained(card.ours, make), trained("cpu", make))
            what = f"captured steps of {make.__name__}: difference from the CPU's"
            report.line(what, worst, most=1e-4)


# ---- dropout and layer norm in one ----


def buffers(card, shape):
    "Sets of x, g, weight and bias, random and on the card, in float32: ours, and theirs."
    rng, dim, sets = np.random.default_rng(0), shape[-1], []
    base = rng.standard_normal(shape, "float32")
    for i in range(SETS):
        rows = rng.standard_normal((2, dim), "float32")
        arrays = [np.roll(base, i, 0), np.roll(base, i + 7, 1), *rows]
        theirs = [torch.tensor(a, device=card.theirs) for a in arrays] if card.theirs else None
        sets.append(([Tensor(a, device=card.ours) for a in arrays], theirs))
    return sets


def leaves(tensors, dtype):
    "x, weight and bias as leaves, and the cotangent, in another dtype: (x, g, weight, bias)."
    kind = dtype if isinstance(tensors[0], Tensor) else getattr(torch, dtype)
    x, g, weight, bias = (t.detach().to(kind) for t in tensors)
    return x.requires_grad_(), g, weight.requires_grad_(), bias.requires_grad_()


def eager(x, weight, bias):
    "PyTorch's layers, one after the other."
    dropped = torch.nn.functional.dropout(x, P)
    return torch.nn.functional.layer_norm(dropped, x.shape[-1:], weight, bias, EPS)


def ways(sets, f, pull):
    "For each set of buffers, what to run: forward, and both ways."
    forward = [lambda s=s: f(s[0], s[2], s[3]) for s in sets]
    both = [lambda s=s: pull(f(s[0], s[2], s[3]), (s[0], s[2], s[3]), s[1]) for s in sets]
    return {"forward": forward, "both ways": both}


def backward(sets, f):
    "For each set of buffers, the way back from a value that was made before."
    made = [(f(s[0], s[2], s[3]), (s[0], s[2], s[3]), s[1]) for s in sets]
    return [lambda m=m: grad(m[0], list(m[1]), m[2], retain_graph=True) for m in made]


def fused(card, report):
    "FusedDropoutLayerNorm's operation beside PyTorch, as a part of what copies reach."
    card = the(card)
    copy = copies(card)
    for shape, repeats in card.shapes.items():
        sets = buffers(card, shape)
        for dtype in ("float32", *HALVES):
            with report.attempt(f"{shape[0]} x {shape[1]}, {dtype}"):
                fused_in(card, report, copy, shape, repeats, sets, dtype)


GOALS = {1024: ((0.75, 0.65), (0.60, 0.50)), 4096: ((0.9, 0.8), (0.85, 0.7))}
GOALS[8192] = GOALS[4096]
RIVALS = [
    ("torch", "forward", 2.5),
    ("torch", "both ways", 2.0),
    ("torch.compile", "both ways", 0.9),
]


def fused_in(card, report, copy, shape, repeats, sets, dtype):
    "The same for one shape and dtype."
    label, times = f"{shape[0]} x {shape[1]}, {dtype}", {}
    draw = Tensor(np.array([3, 5], np.uint64), device=card.ours)
    op = lambda x, w, b: ops.dropout_add_layer_norm(x, None, w, b, draw, p=P, eps=EPS)
    pull = lambda y, wanted, g: grad(y, list(wanted), g)
    mine = [leaves(ours, dtype) for ours, _ in sets]
    clock = lambda capture, runs: card.timed(capture([*runs] * repeats)) / (repeats * SETS)

    difference = differs(mine[0], op, pull)
    most = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}[dtype]
    report.line(f"{label}: difference from the rule", difference, most=most)
    for way, runs in (ways(mine, op, pull) | {"backward": backward(mine, op)}).items():
        times["minima", way] = clock(card.captured, runs)
    size = np.prod(shape) * (4 if dtype == "float32" else 2)
    goals = GOALS.get(shape[1], ((None, None),) * 2)[dtype != "float32"]
    for way, arrays, goal in (("forward", 2, goals[0]), ("backward", 3, goals[1])):
        t = times["minima", way]
        part = arrays * size / t / copy
        report.line(f"{label}: {way}, part of copies", part, goal=goal, more=f"{t:.1f} us")
    if not card.theirs:
        return
    rivals, theirs = {"torch": lambda: eager}, [leaves(theirs, dtype) for _, theirs in sets]
    pull = lambda y, wanted, g: torch.autograd.grad(y, wanted, g)
    if report.left() > 25:  # the compiler takes its time
        rivals["torch.compile"] = lambda: compiled_by_torch(card)
    for name, make in rivals.items():
        with report.attempt(f"{label}: {name}"):
            for way, runs in ways(theirs, make(), pull).items():
                times[name, way] = clock(card.captured_of_torch, runs)
    for name, way, goal in RIVALS:
        if (name, way) in times:
            ratio, more = times[name, way] / times["minima", way], f"{times[name, way]:.1f} us"
            what = f"{label}: {way}, times as fast as {name}"
            report.line(what, ratio, goal=goal if shape[1] in GOALS else None, more=more)


def differs(leaves, op, pull):
    "The furthest that value and gradients of a kernel are from its rule's, found out on the card."
    x, g, weight, bias = leaves
    found, worst = [], 0.0
    for context in (nullcontext, kernels_off):
        with context():
            y = op(x, weight, bias)
            found.append([y, *pull(y, (x, weight, bias), g)])
    for a, b in zip(*found, strict=True):
        a, b = (t.detach().to("float32") for t in (a, b))
        furthest, scale = ((t.abs().max()).item() for t in (a - b, b))
        worst = np.maximum(worst, furthest / max(1.0, scale))  # NaN, if there is one
    return float(worst)


def compiled_by_torch(card):
    "PyTorch's layers, compiled anew, for one shape and dtype."
    if card.theirs != "cuda":
        return eager
    torch._dynamo.reset()  # after a few shapes it would give up, or compile for all of them
    return torch.compile(eager, dynamic=False)


def variants(card, report):
    "What random bits, wide loads, and the kernel itself are worth, forward."
    card = the(card)
    shape = next(iter(card.shapes))
    draw = Tensor(np.array([3, 5], np.uint64), device=card.ours)
    sets = [ours for ours, _ in buffers(card, shape)]
    for dtype in ("float32", "bfloat16"):
        even = [[t.detach().to(dtype) for t in ours] for ours in sets]
        odd = [[x[:, 1:] * 1, None, weight[1:] * 1, bias[1:] * 1] for x, _, weight, bias in even]
        kinds = {
            "as it is": (even, draw, nullcontext),
            "nothing dropped": (even, None, nullcontext),
            "rows of an odd length": (odd, draw, nullcontext),
            "by the rule": (even, draw, kernels_off),
        }
        for what, (arrays, how, context) in kinds.items():
            with report.attempt(what), context():
                runs = [
                    lambda t=t, how=how: ops.dropout_add_layer_norm(
                        t[0], None, t[2], t[3], how, p=P if how is not None else 0.0, eps=EPS
                    )
                    for t in arrays
                ]
                time = card.timed(card.captured(runs)) / SETS
                report.line(f"{shape[0]} x {shape[1]}, {dtype}: {what}", time, "us")


# ---- what a launch costs the host ----


def overheads(card, report):
    "Microseconds of the host for one launch, of several kinds."
    card = the(card)
    xp, n = card.backend.xp, card.calls
    a = xp.zeros(64, dtype="float32")
    x, words, small = Tensor(a), np.zeros(2, np.uint64), xp.zeros(2, dtype="uint64")
    kinds = {
        "a kernel of ours": lambda: lambda: card.backend.door.write(small, words),
        "a function of CuPy's, into an array": lambda: lambda: xp.add(a, a, out=a),
        "a function of CuPy's": lambda: lambda: a + a,
        "an operation of minima's": lambda: lambda: x + x,
        "an operation of PyTorch's": lambda: of_pytorch(card),
        "a graph": lambda: card.captured([lambda: a + a]),
        "a kernel of numba's": lambda: of_numba(a),
    }
    for what, make in kinds.items():
        try:
            run, times = make(), []
            run()
        except Exception as error:  # these may be missing
            print(f"  {what}: {said(error)[:100]}")
            continue
        with report.attempt(what):
            for _ in range(card.rounds):
                card.wait()
                start = perf_counter()
                for _ in range(n):
                    run()
                times.append((perf_counter() - start) / n * 1e6)
            report.line(what, median(times), "us")


def of_pytorch(card):
    "A sum in PyTorch."
    if not card.theirs:
        raise RuntimeError("PyTorch has no GPU")
    t = torch.zeros(64, device=card.theirs)
    return lambda: t + t


def of_numba(a):
    "A kernel of numba's that does nothing."
    from numba import cuda

    kernel = cuda.jit(lambda out: None)
    return lambda: kernel[1, 32](a)


# ---- small models ----


def steps(card, report):
    "Training steps: as they are, as graphs, and PyTorch's."
    card = the(card)
    models = {"digits, 64-64-10": ((64, 64, 10), 64), "784-512-512-10": ((784, 512, 512, 10), 128)}
    for label, (sizes, batch) in models.items():
        with report.attempt(label):
            times = step_times(card, sizes, batch)
            rival = times.get("torch")
            for name in ("eager", "captured"):
                goal = 3.0 if name == "captured" and "digits" in label and rival else None
                more = f"{times[name]:.0f} us" + (f", torch {rival:.0f} us" if rival else "")
                what = f"{label}: {name}, times as fast as torch"
                report.line(what, (rival or np.nan) / times[name], goal=goal, more=more)


def step_times(card, sizes, batch):
    "Microseconds of a step, by who makes it, in turns."
    rng, runs = np.random.default_rng(0), {}
    x = rng.standard_normal((batch, sizes[0]), "float32")
    y = rng.integers(0, sizes[-1], batch)
    given = [Tensor(a, device=card.ours) for a in (x, y)]
    for name, wrap in (("eager", lambda f: f), ("captured", mi.capture)):
        model = layers(nn, sizes).to(card.ours)
        step = wrap(step_of(model, optim.Adam(model.parameters()), nn.CrossEntropyLoss()))
        runs[name] = lambda step=step: step(*given)
    if card.theirs:
        model = layers(torch.nn, sizes).to(card.theirs)
        adam = torch.optim.Adam(model.parameters())
        step, theirs = (
            step_of(model, adam, torch.nn.CrossEntropyLoss()),
            [torch.tensor(a, device=card.theirs) for a in (x, y)],
        )
        runs["torch"] = lambda: step(*theirs)
    times = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(5):
            run()
    for _ in range(card.rounds):
        for name, run in runs.items():
            card.wait()
            start = perf_counter()
            for _ in range(card.calls):
                run()
            card.wait()
            times[name].append((perf_counter() - start) / card.calls * 1e6)
    return {name: median(found) for name, found in times.items()}


# ---- all of it ----

PARTS = {  # by title: what runs, and how many seconds it may take
    "machine: does it work at all": (machine, 60),
    "compile: every kernel": (kernels_compile, 120),
    "ceilings: what the machine can do": (ceilings, 45),
    "kernels: do they compute what their rules do": (kernels, 100),
    "fused: dropout and layer norm in one": (fused, 170),
    "steps of small models": (steps, 45),
    "overheads: what a launch costs the host": (overheads, 40),
    "variants of the kernel, forward": (variants, 40),
    "operators: do they compute what PyTorch's do": (
        table(operators_agree, "operators that agree with PyTorch"), 150,
    ),
}  # fmt: skip


def run_part(run, card, path, seconds):
    "What the process of a part does; it has some time left at the end to say what it has found."
    os.setsid()
    report = Report(path, card.judges, 0.9 * seconds)
    status = 1
    try:
        run(card, report)
        if the.cache_info().currsize:
            report.found["card"] = the(card).name()
        status = 0
    except BaseException as error:
        report.fault(f"{run.__name__} ended", error)
        traceback.print_exc()
    finally:
        report.write()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def in_a_process(run, card, path, seconds):
    "Run a part; returns how it ended."
    process = FORK.Process(target=run_part, args=(run, card, path, seconds))
    sys.stdout.flush()
    process.start()
    until = monotonic() + seconds
    while (late := process.is_alive()) and monotonic() < until:
        sleep(0.05)  # to join it would be to wait for its own processes, too
    try:
        os.killpg(process.pid, signal.SIGKILL)  # it, and what it has started
    except ProcessLookupError:
        pass
    process.join()
    return f"stopped after {seconds:.0f} s" if late else {0: "done"}.get(process.exitcode, "FAILED")


def why_not():
    "What this machine lacks, found out in a process of its own; nothing if it can compute."
    with ProcessPoolExecutor(1, FORK) as pool:
        return pool.submit(available).result()[1]


def main(argv=None):
    "Run the parts that are wanted; returns what was found."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=(), help="words in the titles of parts")
    parser.add_argument("--json", help="where to write all lines")
    parser.add_argument("--seconds", type=float, default=460, help="how long all may take")
    parser.add_argument("--processes", type=int, help="how many of them check and compile at once")
    parser.add_argument("--mock", action="store_true", help="on a pretended card")
    args = parser.parse_args(argv)
    if not args.mock and (why := why_not()):
        sys.exit(f"{why}; --mock runs without one")
    path = Path(args.json or Path(tempfile.mkdtemp()) / "gpu.json")
    path.unlink(missing_ok=True)
    card, start = Pretended if args.mock else Card, monotonic()
    if args.processes is not None:
        card.processes = args.processes
    for title, (run, limit) in PARTS.items():
        if args.only and not any(word in title for word in args.only):
            continue
        left, began = args.seconds - (monotonic() - start), monotonic()
        print(f"\n{title}", flush=True)
        ended = in_a_process(run, card, path, min(limit, left)) if left > 5 else "no time left"
        report = Report(path, card.judges)
        report.found["parts"][title] = ended
        report.write()
        print(f"  {ended}, {monotonic() - began:.0f} s", flush=True)
    return summary(Report(path, card.judges), args.mock)


def summary(report, mock):
    "Print what was found, in short; returns it."
    found = report.found
    missed = [line["what"] for line in found["lines"] if not line["good"]]
    print(f"\n{found['card']}" + " (times mean nothing)" * mock)
    print(f"{len(found['lines'])} lines; parts:")
    for title, ended in found["parts"].items():
        print(f"  {title}: {ended}")
    for title, texts in (("goals missed", missed), ("failures", found["faults"])):
        print(f"{len(texts)} {title}")
        for text in texts[:40]:
            print(f"  {text}")
    return found


if __name__ == "__main__":
    done = main()
    sys.exit(bool(done["faults"]) or any(ended != "done" for ended in done["parts"].values()))
