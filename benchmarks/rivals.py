"""Measures rivals side by side: in one process, in turns, as medians, and prints ratios.

Absolute times say more about a machine's mood than about code, so nothing here reports them alone:
every rival is timed in the same run as all others, round after round, and compared with the first.
A control in plain NumPy tells a slow machine from slow code.
"""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # before NumPy is imported

import gc
import platform
from statistics import median
from time import perf_counter

import numpy as np


def measure(
    rivals,  # functions by name; the first is the reference
    calls=200,  # calls in one round
    rounds=31,  # rounds, over which the median is taken
):
    "The median time of one call of each rival, in microseconds, by name."
    times = {name: [] for name in rivals}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, function in rivals.items():
                start = perf_counter()
                for _ in range(calls):
                    function()
                times[name].append((perf_counter() - start) / calls * 1e6)
    finally:
        gc.enable()
    return {name: median(values) for name, values in times.items()}


def report(
    title,  # what was measured
    times,  # what `measure` returned
    goals=None,  # the ratio that each name should reach
):
    "Print how many times faster than the first each rival is."
    reference, *_ = times
    print(f"\n{title}")
    for name, time in times.items():
        goal = f"   (goal {goals[name]:.1f})" if goals and name in goals else ""
        ratio = f"{times[reference] / time:5.2f} x {reference}"
        print(f"  {name:20} {time:11.2f} us   {ratio}{goal}")


def environment():
    "Print what the ratios depend on: versions, threads, the BLAS and the core type it assumes."
    import torch

    torch.set_num_threads(1)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        core = "unknown, since threadpoolctl is missing"
    else:
        pools = (pool.get("architecture") for pool in threadpool_info())
        core = ", ".join(sorted({core for core in pools if core}))
    print(f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}")
    path = os.environ.get("MKL_ENABLE_INSTRUCTIONS", "of the processor")
    print(f"BLAS {blas['name']} {blas['version']}, core type {core}, one thread each")
    print(f"PyTorch's MKL: instructions {path}")
