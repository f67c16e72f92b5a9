"Block-wise gyro dropout: a pair of layers, and a whole training step, beside dense dropout."

from rivals import environment, measure, report  # isort: skip - sets the number of threads

import numpy as np
import torch

import minima as mi
from minima import nn, optim

BATCH, SIGMA, TAU = 256, 256, 16
DENSE, MASKS, TORCH = "minima, dropout", "minima, gyro masks", "torch, dropout"
BLOCKS = {f"minima, gyro blocks of {n}": n for n in (64, 128, 256)}
PRODUCTS = "numpy, products only"
KINDS = DENSE, MASKS, *BLOCKS, TORCH


def model(kind, sizes):
    "Linear, ReLU, dropout, ..., Linear, from `sizes[0]` inputs to `sizes[-1]` outputs."
    library, layers = torch.nn if kind == TORCH else nn, []
    mi.manual_seed(0)
    schedule = nn.GyroSchedule(1000, sigma=SIGMA, tau=TAU)
    for pair in zip(sizes, sizes[1:-1]):
        gyro, block = kind == MASKS or kind in BLOCKS, BLOCKS.get(kind, 128)
        drop = nn.GyroDropout(schedule=schedule, block=block) if gyro else library.Dropout(0.5)
        layers += library.Linear(*pair), library.ReLU(), drop
    container = nn.GyroSequential if kind in BLOCKS else library.Sequential
    return container(*layers, library.Linear(*sizes[-2:]))


def tensors(kind, *arrays):
    "The arrays as tensors of the library."
    return map(torch.tensor if kind == TORCH else mi.Tensor, arrays)


def passes(kind, sizes, x, g):
    "Forward and backward, for gradients of weights."
    network, (x, g) = model(kind, sizes), tensors(kind, x, g)

    def run():
        for p in network.parameters():
            p.grad = None
        network(x).backward(g)

    return run


def step(kind, sizes, x, y):
    "A step of training with SGD."
    network, (x, y) = model(kind, sizes), tensors(kind, x, y)
    loss_fn = (torch.nn if kind == TORCH else nn).CrossEntropyLoss()
    optimizer = (torch.optim if kind == TORCH else optim).SGD(network.parameters(), lr=0.01)

    def run():
        optimizer.zero_grad()
        loss_fn(network(x), y).backward()
        optimizer.step()

    return run


def products(sizes, g):
    "The dense products of both passes alone, in NumPy: the control."
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(BATCH, n)).astype("float32") for n in sizes]
    weights = [rng.normal(size=pair).astype("float32") for pair in zip(sizes, sizes[1:])]

    def run():
        h = g
        for x, w in zip(inputs, weights):
            x @ w
        for i in reversed(range(len(weights))):
            inputs[i].T @ h
            h = h @ weights[i].T if i else None

    return run


def compare(title, rivals, goal):
    "Measure and print all `rivals`, and how blocks stand beside dense dropout, here and in torch."
    times = measure(rivals, calls=1, rounds=21)
    report(title, times)
    for kind, block in BLOCKS.items():
        dense, torchs = times[DENSE] / times[kind], times[TORCH] / times[kind]
        print(f"  blocks of {block:3}: {dense:.2f} x {DENSE} (goal {goal}), ", end="")
        print(f"{torchs:.2f} x {TORCH} (goal 1.5)")


if __name__ == "__main__":
    environment()
    print(f"batch {BATCH}, tau {TAU}")
    rng = np.random.default_rng(0)
    for sizes in ((784, 2048, 10), (784, 2048, 2048)):
        x, g = (rng.normal(size=(BATCH, n)).astype("float32") for n in (sizes[0], sizes[-1]))
        rivals = {kind: passes(kind, sizes, x, g) for kind in KINDS}
        rivals[PRODUCTS] = products(sizes, g)
        compare(f"layer pair {sizes}, forward and backward", rivals, 1.6)

    sizes = 784, 2048, 2048, 10
    x, y = rng.normal(size=(BATCH, 784)).astype("float32"), rng.integers(0, 10, BATCH)
    rivals = {kind: step(kind, sizes, x, y) for kind in KINDS}
    rivals[PRODUCTS] = products(sizes, rng.normal(size=(BATCH, 10)).astype("float32"))
    compare(f"training step {sizes}, SGD", rivals, 1.3)
