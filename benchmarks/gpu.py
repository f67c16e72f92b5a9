"""All that can only be known on a GPU, in one call: is it right, and how fast is it?

    python benchmarks/gpu.py [--only WORD ...] [--json FILE] [--mock]

In this order: what the machine can do (copies, products), whether every operator and every kernel
computes what PyTorch and the rules compute, what a launch costs, how fast dropout with layer norm
is beside PyTorch, as it is and compiled, and how fast small models train, as they are and as CUDA
graphs. Each line has the goal that was set for it before anything was measured.

How it is measured: work is captured and replayed, so that the host's time does not count where it
is not asked for; buffers rotate and are together larger than the cache; numbers are random; memory
is full of NaN before results are checked; medians. With `--mock` everything runs on a pretended
card with small shapes, to see that the script is whole; its times mean nothing.
"""

import argparse
import json
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests"), str(ROOT / "tools")]

from test_operators import ROWS, normal, numbers

import minima as mi
from minima import nn, optim
from minima import operators as ops
from minima.autograd import Tensor, grad
from minima.backend import get_backend, kernels_off, register
from minima.gpu import available

P, EPS, SETS = 0.1, 1e-5, 4
HALVES = ("float16", "bfloat16")

# ---- the card: what is different between a real and a pretended one ----


class Card:
    "A GPU: how work is captured and timed on it."

    ours = theirs = "cuda"
    shapes = {(8192, 1024): 8, (8192, 4096): 4, (4096, 8192): 4}  # and how often in a graph
    size, products, calls, rounds = 1 << 28, 8192, 200, 9

    def __init__(self):
        self.backend = get_backend("cuda")
        self.cupy = self.backend.cupy

    def name(self):
        "What it is called, and with which versions it was used."
        runtime = self.cupy.cuda.runtime
        card = runtime.getDeviceProperties(0)["name"].decode()
        return f"{card}, CUDA {runtime.driverGetVersion()}, CuPy {self.cupy.__version__}"

    def wait(self):
        "Until all is done."
        self.cupy.cuda.Device().synchronize()
        torch.cuda.synchronize()

    def captured(self, runs):
        "All `runs`, of minima's, as one graph; and what must live as long."
        cuda = self.cupy.cuda
        stream, pool = self.backend.side_stream(), cuda.MemoryPool()
        self.wait()
        with stream:
            for run in runs:
                run()
            stream.synchronize()
            with cuda.using_allocator(pool.malloc):
                stream.begin_capture()
                kept = [run() for run in runs]
                graph = stream.end_capture()
        return lambda: graph.launch(cuda.Stream.null), (graph, pool, kept)

    def captured_of_torch(self, runs):
        "All `runs`, of PyTorch's, as one graph."
        self.wait()
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(3):
                for run in runs:
                    run()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            kept = [run() for run in runs]
        return graph.replay, (graph, kept)

    def timed(self, launch, rounds=15):
        "The median time of `launch`, as the card counts it, in microseconds."
        event, times = self.cupy.cuda.Event, []
        for _ in range(rounds):
            start, end = event(), event()
            start.record(self.cupy.cuda.Stream.null)
            launch()
            end.record(self.cupy.cuda.Stream.null)
            end.synchronize()
            times.append(self.cupy.cuda.get_elapsed_time(start, end) * 1e3)
        return median(times)

    def poison(self):
        "Leave memory full of NaN to whoever takes it next."
        for size in (1 << 10, 1 << 16, 1 << 20, 1 << 28):
            arrays = [self.cupy.full(size // 4, np.nan, "float32") for _ in range(8)]
            del arrays


class Pretended(Card):
    "No GPU at all."

    ours, theirs = "mock", "cpu"
    shapes, size, products, calls, rounds = {(8, 64): 1, (4, 128): 1}, 1 << 10, 16, 2, 1

    def __init__(self):
        from minima.gpu.graphs import with_graphs
        from minima.gpu.library import pretended

        self.backend = register(with_graphs(pretended()))
        self.cupy = self.backend.cupy

    def name(self):
        return "a pretended card, whose times mean nothing"

    def wait(self):
        pass

    def captured(self, runs):
        return lambda: [run() for run in runs], None

    captured_of_torch = captured

    def timed(self, launch, rounds=3):
        start = perf_counter()
        launch()
        return (perf_counter() - start) * 1e6

    def poison(self):
        pass


# ---- the report ----


class Report:
    "Lines as they come: what, how much, of what, and the goal."

    def __init__(self, only, judges):
        self.only, self.judges, self.lines = only, judges, []

    def wants(self, part):
        "Whether this part shall run; its title."
        wanted = not self.only or any(word in part for word in self.only)
        if wanted:
            print(f"\n{part}")
        return wanted

    def line(self, what, value, unit="", goal=None, more=""):
        "Print and keep a line; `goal` is the least value that is good."
        goal = goal if self.judges else None
        verdict = "" if goal is None else f"goal {goal:g}: {'met' if value >= goal else 'MISSED'}"
        print(f"  {what:58} {value:10.4g} {unit:9} {verdict} {more}".rstrip())
        self.lines.append(dict(what=what, value=value, unit=unit, goal=goal, more=more))


# ---- what the machine can do ----


def ceilings(card, report):
    "The rate of copies, in bytes per microsecond, and of products."
    xp, n = card.backend.xp, card.size
    sources = [xp.zeros(n // 4, dtype="float32") for _ in range(2)]
    targets = [xp.empty_like(a) for a in sources]
    runs = [lambda a=a, b=b: b.__setitem__(..., a) for a, b in zip(sources, targets)]
    launch, kept = card.captured(runs)
    copy = 2 * n * len(runs) / card.timed(launch)
    report.line("copy", copy / 1e6, "TB/s")
    n = card.products
    for dtype in ("float32", *HALVES):
        a = ops.astype(Tensor(np.ones((n, n), "float32"), device=card.ours), dtype=dtype)
        b = torch.ones(n, n, dtype=getattr(torch, dtype), device=card.theirs)
        launch, kept = card.captured([lambda a=a: a @ a])
        theirs, kept_too = card.captured_of_torch([lambda b=b: b @ b])
        times = [card.timed(launch), card.timed(theirs)]
        rate = 2 * n**3 / times[0] / 1e6
        report.line(
            f"product of {n} x {n}, {dtype}",
            rate,
            "TFLOP/s",
            more=f"torch {rate * times[0] / times[1]:.4g}",
        )
    return copy


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


def on_card(f, arrays, card, dtype, cotangent=None):
    "The value and the gradients of `f` on the card, as NumPy's arrays, wide."
    leaves = [Tensor(a, device=card.ours) for a in arrays]
    leaves = [t.to(dtype) if t.dtype.kind == "f" else t for t in leaves]
    for t in leaves:
        t.requires_grad_(t.dtype.kind in "fV" and str(t.dtype) != "bool")
    y = f(*leaves)
    found = [y]
    if y.requires_grad:
        (g,) = numbers(normal, [y.shape])
        g = Tensor(g, device=card.ours, dtype="float32").to(y.dtype)
        found += grad(y, [t for t in leaves if t.requires_grad], g, allow_unused=True)
    return [t if t is None else wide(t.detach()).numpy() for t in found]


def wide(t):
    "`t`, in a dtype that NumPy knows."
    return t.to("float32") if t.dtype.kind == "V" else t


def of_torch(f, arrays, card):
    "The same of PyTorch's `f`, in float32."
    leaves = [torch.tensor(np.array(a), device=card.theirs) for a in arrays]
    leaves = [t.float().requires_grad_() if t.is_floating_point() else t for t in leaves]
    y = f(*leaves)
    found = [y]
    if y.requires_grad:
        (g,) = numbers(normal, [tuple(y.shape)])
        wanted = [t for t in leaves if t.requires_grad]
        g = torch.tensor(np.array(g), device=card.theirs, dtype=y.dtype)
        found += torch.autograd.grad(y, wanted, g, allow_unused=True)
    return [t if t is None else t.detach().cpu().numpy() for t in found]


def correctness(card, report):
    "Every operator beside PyTorch, every kernel beside its rule, steps beside the CPU's."
    card.poison()
    faults, count = [], 0
    for row in ROWS:
        for shapes, settings in row.cases():
            arrays = numbers(row.make, shapes)
            found = on_card(row.ours_with(settings), arrays, card, "float32")
            try:
                expected = of_torch(row.theirs_with(torch, settings), arrays, card)
            except (RuntimeError, TypeError, NotImplementedError):
                continue  # PyTorch has not got it in this dtype
            count += 1
            if furthest(found, expected) > 2e-4:
                faults.append(f"{row.name} {shapes} {settings}")
    report.line(
        "operators that agree with PyTorch",
        1 - len(faults) / count,
        goal=1,
        more=" ".join(faults[:5]),
    )
    faults, count = [], 0
    for row in ROWS:
        op = getattr(ops, row.name.partition(",")[0], None)
        kernels = getattr(getattr(op, "readings", None), "kernels", None)
        if kernels is None or kernels.find(card.backend.name) is None:
            continue
        for dtype, tolerance in (("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 4e-2)):
            for shapes, settings in row.cases():
                arrays = numbers(row.make, shapes)
                both = []
                for context in (nullcontext, kernels_off):
                    card.poison()
                    with context():
                        both.append(on_card(row.ours_with(settings), arrays, card, dtype))
                count += 1
                if furthest(*both) > tolerance:
                    faults.append(f"{row.name} {dtype} {shapes} {settings}")
    report.line(
        "kernels that agree with their rules",
        1 - len(faults) / max(count, 1),
        goal=1,
        more=f"of {count} " + " ".join(faults[:5]),
    )
    worst = 0.0
    for make in (optim.SGD, optim.Adam, optim.AdamW):
        ends = [trained(card, device, make) for device in ("cpu", card.ours)]
        worst = max(worst, furthest(*ends))
    report.line(
        "steps of optimizers: difference from the CPU's", worst, more="at most 1e-4 is good"
    )


def trained(card, device, make):
    "The weights after five steps, captured where it can be."
    mi.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 32), nn.GELU(), nn.FusedDropoutLayerNorm(32), nn.Linear(32, 5)
    )
    model, rng = model.to(device), np.random.default_rng(0)
    step = mi.capture(training_step(model, make(model.parameters(), lr=0.01)))
    for _ in range(5):
        x, y = rng.normal(size=(64, 20)).astype("float32"), rng.integers(0, 5, 64)
        step(Tensor(x, device=device), Tensor(y, device=device))
    return [p.data.numpy() for p in model.parameters()]


def training_step(model, optimizer):
    "A step of training, as a function of a batch."
    loss_fn = nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


# ---- what a launch costs the host ----


def overheads(card, report):
    "Microseconds of the host for one launch, of several kinds."
    xp, n = card.backend.xp, card.calls
    a = xp.zeros(64, dtype="float32")
    x, t = Tensor(a), torch.zeros(64, device=card.theirs)
    words = np.zeros(2, np.uint64)
    small = xp.zeros(2, dtype="uint64")
    kinds = {
        "a kernel of ours": lambda: card.backend.door.write(small, words),
        "a function of CuPy's, into an array": lambda: xp.add(a, a, out=a),
        "a function of CuPy's": lambda: a + a,
        "an operation of minima's": lambda: x + x,
        "an operation of PyTorch's": lambda: t + t,
        "a graph": card.captured([lambda: a + a])[0],
    }
    with suppress(ImportError, RuntimeError):
        from numba import cuda

        empty = cuda.jit(lambda out: None)
        kinds["a kernel of numba's"] = lambda: empty[1, 32](a)
    for what, run in kinds.items():
        with suppress(Exception):  # numba may be here, and CUDA not for it
            run()
            times = []
            for _ in range(card.rounds):
                card.wait()
                start = perf_counter()
                for _ in range(n):
                    run()
                times.append((perf_counter() - start) / n * 1e6)
            report.line(what, median(times), "us")


# ---- dropout and layer norm in one ----


def buffers(card, shape, dtype):
    "Sets of x, g, weight and bias, as NumPy's would be, but random and on the card; ours, theirs."
    rng, dim = np.random.default_rng(0), shape[-1]
    base = rng.normal(size=shape).astype("float32")
    sets = []
    for i in range(SETS):
        arrays = [
            np.roll(base, i, 0),
            np.roll(base, i + 7, 1),
            rng.normal(size=dim),
            rng.normal(size=dim),
        ]
        ours = [Tensor(a, device=card.ours, dtype="float32").to(dtype) for a in arrays]
        theirs = [torch.tensor(a, device=card.theirs).to(getattr(torch, dtype)) for a in arrays]
        for leaves in (ours, theirs):
            for j in (0, 2, 3):
                leaves[j].requires_grad_()
        sets.append((ours, theirs))
    return sets


def eager(x, weight, bias):
    "PyTorch's layers, one after the other."
    dropped = torch.nn.functional.dropout(x, P)
    return torch.nn.functional.layer_norm(dropped, x.shape[-1:], weight, bias, EPS)


def forward_and_backward(sets, f, pull):
    "For each set of buffers: the way forward, and the way back from a value made before."
    forward, backward = [], []
    for leaves in sets:
        x, g, weight, bias = leaves
        y = f(x, weight, bias)
        forward.append(lambda x=x, w=weight, b=bias: f(x, w, b))
        backward.append(lambda y=y, g=g, wanted=(x, weight, bias): pull(y, wanted, g))
    return forward, backward


def fused(card, report, copy):
    "FusedDropoutLayerNorm's operation beside PyTorch, as a part of what copies reach."
    goals = {1024: ((0.75, 0.65), (0.60, 0.50)), 4096: ((0.9, 0.8), (0.85, 0.7))}
    goals[8192] = goals[4096]
    compiled = torch.compile(eager) if card.theirs == "cuda" else eager
    pull_theirs = lambda y, wanted, g: torch.autograd.grad(y, wanted, g, retain_graph=True)
    pull_ours = lambda y, wanted, g: grad(y, list(wanted), g, retain_graph=True)
    draw = Tensor(np.array([3, 5], np.uint64), device=card.ours)
    ours = lambda x, w, b: ops.dropout_add_layer_norm(x, None, w, b, draw, p=P, eps=EPS)
    for (shape, repeats), dtype in (
        (s, d) for s in card.shapes.items() for d in ("float32", *HALVES)
    ):
        sets = buffers(card, shape, dtype)
        size = np.prod(shape) * (4 if dtype == "float32" else 2)
        mine = forward_and_backward([s for s, _ in sets], ours, pull_ours)
        times = {}
        for name, capture, ways in (
            ("minima", card.captured, mine),
            (
                "torch",
                card.captured_of_torch,
                forward_and_backward([s for _, s in sets], eager, pull_theirs),
            ),
            (
                "torch.compile",
                card.captured_of_torch,
                forward_and_backward([s for _, s in sets], compiled, pull_theirs),
            ),
        ):
            try:
                for way, runs in zip(("forward", "backward"), ways):
                    launch, kept = capture([*runs] * repeats)
                    times[name, way] = card.timed(launch) / (repeats * SETS)
            except Exception as error:  # PyTorch's compiler may be missing
                print(f"  {name} cannot: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        label = f"{shape[0]} x {shape[1]}, {dtype}"
        wide = goals.get(shape[1], ((None, None),) * 2)[dtype != "float32"]
        for way, arrays, goal in (("forward", 2, wide[0]), ("backward", 3, wide[1])):
            t = times["minima", way]
            report.line(
                f"{label}: {way}, part of copies",
                arrays * size / t / copy,
                goal=goal,
                more=f"{t:.1f} us",
            )
        both = {
            name: times[name, "forward"] + times[name, "backward"]
            for name, way in times
            if way == "backward"
        }
        rivals = [
            ("torch", "forward", 2.5),
            ("torch", "both ways", 2.0),
            ("torch.compile", "both ways", 0.9),
        ]
        for name, way, goal in rivals:
            if (name, "backward") in times:
                ratio = (
                    both[name] / both["minima"]
                    if way == "both ways"
                    else times[name, way] / times["minima", way]
                )
                report.line(
                    f"{label}: {way}, times as fast as {name}",
                    ratio,
                    goal=goal if goals.get(shape[1]) else None,
                )


def variants(card, report):
    "What random bits, wide loads, and the kernel itself are worth, forward."
    shape = max(card.shapes, key=lambda s: s[0] * s[1])
    draw = Tensor(np.array([3, 5], np.uint64), device=card.ours)
    for dtype in ("float32", "bfloat16"):
        sets = [ours for ours, _ in buffers(card, shape, dtype)]
        wide = [Tensor(np.zeros((shape[0], shape[1] + 1), "float32"), device=card.ours).to(dtype)]
        odd = [(t[0].detach()[:, 1:], t[1], t[2].detach()[1:], t[3].detach()[1:]) for t in sets]
        kinds = {
            "as it is": (sets, draw, nullcontext),
            "nothing dropped": (sets, None, nullcontext),
            "rows of an odd length": (odd, draw, nullcontext),
            "by the rule": (sets, draw, kernels_off),
        }
        del wide
        for what, (arrays, how, context) in kinds.items():
            with context():
                runs = [
                    lambda t=t, how=how: ops.dropout_add_layer_norm(
                        t[0], None, t[2], t[3], how, p=P if how is not None else 0.0, eps=EPS
                    )
                    for t in arrays
                ]
                launch, kept = card.captured(runs)
                report.line(
                    f"{shape[0]} x {shape[1]}, {dtype}: {what}", card.timed(launch) / SETS, "us"
                )


# ---- small models ----


def steps(card, report):
    "Training steps per second: as they are, as graphs, and PyTorch's."
    models = {"digits, 64-64-10": ((64, 64, 10), 64), "784-512-512-10": ((784, 512, 512, 10), 128)}
    for label, (sizes, batch) in models.items():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(batch, sizes[0])).astype("float32")
        y = rng.integers(0, sizes[-1], batch)
        ours = [Tensor(a, device=card.ours) for a in (x, y)]
        theirs = [torch.tensor(a, device=card.theirs) for a in (x, y)]
        runs = {}
        for name, library, wrap in (("eager", nn, lambda f: f), ("captured", nn, mi.capture)):
            model = mlp(library, sizes).to(card.ours)
            runs[name] = wrap(training_step(model, optim.Adam(model.parameters())))
        model = mlp(torch.nn, sizes).to(card.theirs)
        runs["torch"] = torch_step(model, torch.optim.Adam(model.parameters()))
        times = {}
        for name, step in runs.items():
            given = theirs if name == "torch" else ours
            for _ in range(5):
                step(*given)
            rounds = []
            for _ in range(card.rounds):
                card.wait()
                start = perf_counter()
                for _ in range(card.calls):
                    step(*given)
                card.wait()
                rounds.append((perf_counter() - start) / card.calls * 1e6)
            times[name] = median(rounds)
        for name in ("eager", "captured"):
            goal = 3.0 if name == "captured" and "digits" in label else None
            report.line(
                f"{label}: {name}, times as fast as torch", times["torch"] / times[name],
                goal=goal, more=f"{times[name]:.0f} us, torch {times['torch']:.0f} us",
            )  # fmt: skip


def mlp(library, sizes):
    "Linear layers with ReLU between them."
    members = []
    for n, m in zip(sizes, sizes[1:]):
        members += [library.Linear(n, m), library.ReLU()]
    return library.Sequential(*members[:-1])


def torch_step(model, optimizer):
    "A step of training with PyTorch."
    loss_fn = torch.nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()

    return step


# ---- all of it ----


def main(argv=None):
    "Run the parts that are wanted."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=(), help="words in the titles of parts")
    parser.add_argument("--json", help="where to write all lines")
    parser.add_argument("--mock", action="store_true", help="on a pretended card")
    args = parser.parse_args(argv)
    if not args.mock:
        can, why = available()
        if not can or not torch.cuda.is_available():
            sys.exit(f"{why or 'PyTorch finds no GPU'}; --mock runs without one")
    card, report = Pretended() if args.mock else Card(), Report(args.only, judges=not args.mock)
    print(card.name(), f"PyTorch {torch.__version__}", sep=", ")
    copy = ceilings(card, report) if report.wants("ceilings: what the machine can do") else None
    if report.wants("correctness: operators, kernels, steps"):
        correctness(card, report)
    if report.wants("overheads: what a launch costs the host"):
        overheads(card, report)
    if report.wants("fused: dropout and layer norm in one"):
        fused(card, report, copy or ceilings(card, report))
    if report.wants("variants of the kernel, forward"):
        variants(card, report)
    if report.wants("steps of small models"):
        steps(card, report)
    missed = [line for line in report.lines if line["goal"] and line["value"] < line["goal"]]
    print(
        f"\n{len(report.lines)} lines, {len(missed)} goals missed"
        + " (times mean nothing)" * args.mock
    )
    if args.json:
        Path(args.json).write_text(
            json.dumps({"card": card.name(), "lines": report.lines}, indent=1)
        )
    return report


if __name__ == "__main__":
    main()
