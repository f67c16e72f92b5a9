"""All benchmarks of speed and memory, as ratios to PyTorch, in one table.

    python benchmarks/run.py [--only WORDS] [--rounds 15] [--threads 1 2] [--growth] [--json F]

Each contest is run in processes of its own, with numba's kernels and without, so that no rival
leaves its pools of threads or its caches to another contest. Within a process all rivals take
turns, and medians are compared. With two threads, PyTorch and minima have processes of their own,
which alternate: their pools of threads fight if they share one.

What the numbers do not say by themselves: PyTorch's MKL takes its AVX2 path on processors that
are not Intel's, so a part of a lead in products is the library, not the framework (the rows print
which part of the machine's own GEMM rate is reached). On Intel's, MKL_ENABLE_INSTRUCTIONS=AVX2 in
the environment shows what the ratios would be elsewhere. And on the largest layers, half of
PyTorch's time is page faults, which a tuned allocator avoids
(GLIBC_TUNABLES=glibc.malloc.mmap_max=0).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

HERE = Path(__file__).parent
FASTEST = "torch, fastest"


# ---- in a process of its own ----


def worker(row, rounds, only, group):
    "Measure a contest, and print the medians as JSON."
    import numpy as np
    import torch
    from contests import CONTESTS, GROWTH
    from rivals import measure

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    contest = (GROWTH[group][json.loads(row)] if group else CONTESTS[row])()
    rivals = {name: run for name, run in contest.rivals.items() if only in name}
    for run in rivals.values():
        for _ in range(3):
            run()
    yardsticks = {}
    if "flop" in contest.work:
        a, b = np.ones((2, 1024, 1024), "float32")
        out = a @ b
        yardsticks["gemm"] = lambda: np.dot(a, b, out=out)
    if "byte" in contest.work:
        source = np.ones(contest.work["byte"] // 20, "float32")
        target = source.copy()
        yardsticks["copy"] = lambda: np.copyto(target, source)
    times = measure(rivals, contest.calls, rounds) | measure(yardsticks, 2, min(rounds, 9))
    if "gemm" in times:
        contest.work["flop per us"] = 2 * 1024**3 / times.pop("gemm")
    if "copy" in times:
        contest.work["byte per us"] = 8 * source.size / times.pop("copy")
    found = {"times": times, "work": contest.work, "goals": contest.goals}
    if contest.anew and not only:
        time_of(contest.anew(), 2)  # and its loops are compiled, once for this machine
        taken = [time_of(contest.anew(), 2) for _ in range(3)]
        found |= {"captured": contest.captured, "cost": min(taken) / times["minima"] - 1}
    print(json.dumps(found))


def time_of(function, calls=1):
    "How long `calls` of a function take together, in microseconds."
    start = perf_counter()
    for _ in range(calls):
        function()
    return (perf_counter() - start) * 1e6


def memory(who, batch):
    "Train a model for 100 steps, and print the peak of memory in megabytes."
    sizes = 784, 512, 512, 10
    if who == "torch":
        import numpy as np
        import torch as library
        from torch import nn, optim
    else:
        import numpy as np

        import minima as library
        from minima import nn, optim
    captured = library.capture if who == "captured" else lambda step: step
    x, y = np.ones((batch, sizes[0]), "float32"), np.arange(batch) % 10
    members = []
    for n, m in zip(sizes, sizes[1:]):
        members += [nn.Linear(n, m), nn.LayerNorm(m), nn.ReLU(), nn.Dropout(0.1)]
    model, loss_fn = nn.Sequential(*members[:-3]), nn.CrossEntropyLoss()
    adam, x, y = optim.Adam(model.parameters()), library.tensor(x), library.tensor(y)

    @captured
    def step():
        adam.zero_grad()
        loss_fn(model(x), y).backward()
        adam.step()

    for _ in range(100):
        step()
    # of this process alone: what getrusage says may be its parent's, from before it began
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    print(json.dumps(int(peak[1]) / 1024))


# ---- all of them ----


def call(arguments, threads=1, numba=True):
    "What a process with these `arguments` prints, from JSON."
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    more = dict.fromkeys(names, str(threads)) | {"MINIMA_NUMBA": str(int(numba))}
    more["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    out = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env=os.environ | more, capture_output=True, text=True,
    )  # fmt: skip
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    return json.loads(out.stdout.splitlines()[-1])


def raced(row, rounds, threads, numba, group=""):
    "The medians of one contest."
    arguments = ["--row", row, "--rounds", rounds, "--group", group]
    if threads == 1:
        return call(arguments, 1, numba)
    found = {"torch": [], "minima": []}
    for _ in range(3):
        for only, turns in found.items():
            turns.append(call([*arguments, "--rival", only], threads, numba))
    times = {
        name: median(turn["times"][name] for turn in turns)
        for turns in found.values()
        for name in turns[0]["times"]
    }
    return found["minima"][0] | {"times": times}


def ratios(found):
    "How many times faster than PyTorch, as it is by default and at its fastest, each rival is."
    times = found["times"]
    theirs = {name: t for name, t in times.items() if name.startswith("torch")}
    references = {"torch": theirs["torch"]}
    if len(theirs) > 1:
        references[FASTEST] = min(theirs.values())
    return {
        name: {other: t / time for other, t in references.items()}
        for name, time in times.items()
        if name not in theirs
    }


def line(title, numba, threads, found, who="minima", goals="goals"):
    "A row of the table."
    ours = ratios(found)
    goals = {k: v[numba] for k, v in found[goals].items() if v[numba] and threads == 1}
    cells = [f"{ours[who][name]:5.2f}" for name in ours[who]]
    cells += [" " * 5] * (2 - len(cells))
    wanted = ", ".join(f"{goal:g} x {name}" for name, goal in goals.items())
    met = all(ours[who][name] >= goal for name, goal in goals.items())
    rest = [f"{name} {row['torch']:.2f}" for name, row in ours.items() if who not in name]
    if who != "minima":
        plain = f"{who}, not fused"
        rest = [f"not fused {ours[plain]['torch']:.2f}"] * (plain in ours)
        rest += [f"{name} {ours[name]['torch']:.2f}" for name in ours if "jax" in name]
        rest += [f"captured in the time of {found['cost']:.0f} steps"]
    work, time = found["work"], found["times"][who]
    for unit, yardstick in (("flop", "GEMM"), ("byte", "copy")):
        if f"{unit} per us" in work:
            part = work[unit] / time / work[f"{unit} per us"]
            rest.append(f"{part:.0%} of {yardstick}")
    verdict = f"{'reached' if met else 'MISSED'}: {wanted}" if goals else ""
    how = f"{'numba' if numba else 'numpy'}, {threads}"
    return f"{title:46} {how:9} {cells[0]} {cells[1]}  {verdict:48} {'; '.join(rest)}"


def main():
    "Run what was asked for."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--rounds", type=int, default=15, help="over which medians are taken")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="1, 2 or both")
    parser.add_argument("--growth", action="store_true", help="how cost grows, too")
    parser.add_argument("--json", help="a file for all numbers")
    for name in ("row", "rival", "group", "memory"):  # of a process of its own
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=128, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        return memory(given.memory, given.batch)
    if given.row:
        return worker(given.row, given.rounds, given.rival, given.group)
    from contests import CONTESTS, GROWTH
    from rivals import environment

    environment()
    print(f"\n{'times faster than PyTorch: as it is, and at its fastest':46}")
    results = []
    for title in (t for t in CONTESTS if given.only in t):
        for threads in given.threads:
            for numba in (False, True):
                found = raced(title, given.rounds, threads, numba)
                print(line(title, numba, threads, found), flush=True)
                if "captured" in found:
                    more = "  the same, captured" + " and fused" * numba, numba, threads, found
                    print(line(*more, "minima, captured", "captured"), flush=True)
                results.append({"row": title, "numba": numba, "threads": threads, **found})
    if given.only in "peak memory":
        peaks = {"torch": call(["--memory", "torch"])}
        for numba in (False, True):
            peaks["numba" if numba else "numpy"] = call(["--memory", "minima"], 1, numba)
            kind = "numba, captured" if numba else "numpy, captured"
            peaks[kind] = call(["--memory", "captured"], 1, numba)
        parts = {name: peak / peaks["torch"] for name, peak in peaks.items()}
        print("peak memory of 784-512-512-10, as part of PyTorch's:", end=" ")
        print(f"{parts['numpy']:.2f} (goal 0.25), with numba {parts['numba']:.2f} (goal 0.7)")
        for kind in ("numpy", "numba"):
            part = peaks[f"{kind}, captured"] / peaks[kind]
            print(f"  the same captured, {kind}, as part of that: {part:.2f} (goal 1)")
        results.append({"row": "peak memory", "megabytes": peaks})
    for group, sizes in GROWTH.items() if given.growth else ():
        print(f"\n{group}: times faster than PyTorch (and minima's time, the first being 1)")
        first = None
        for n in sizes:
            found = raced(n, max(5, given.rounds // 3), 1, True, group)
            ratio, time = ratios(found)["minima"]["torch"], found["times"]["minima"]
            first = first or time
            print(f"  {n:8} {ratio:6.2f}   ({time / first:.1f})", flush=True)
            results.append({"row": f"{group}: {n}", "numba": True, "threads": 1, **found})
    if given.growth:
        print("\npeak memory of 784-512-512-10, by the batch: megabytes in PyTorch, in minima")
        for batch in (8, 128, 2048):
            peaks = [
                call(["--memory", who, "--batch", batch], 1, False) for who in ("torch", "minima")
            ]
            print(f"  {batch:8} {peaks[0]:6.0f} {peaks[1]:6.0f}", flush=True)
            results.append({"row": f"peak memory, batch {batch}", "megabytes": peaks})
    if given.json:
        Path(given.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
