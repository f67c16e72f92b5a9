"Block-wise gyro dropout: a pair of layers, and a whole training step, beside dense dropout."

from rivals import environment, measure, report  # isort: skip - sets the number of threads

import numpy as np
import torch

import minima as mi
from minima import nn, optim

BATCH, SIGMA, TAU, BLOCK = 256, 256, 16, 128


def drops(kind, schedule):
    "A dropout of the given kind."
    return nn.Dropout(0.5) if kind == "dense" else nn.GyroDropout(schedule=schedule, block=BLOCK)


def pair(kind, sizes):
    "Linear, ReLU, dropout, Linear."
    inputs, hidden, outputs = sizes
    row = nn.GyroPair if kind == "pair" else nn.Sequential
    schedule = nn.GyroSchedule(1000, sigma=SIGMA, tau=TAU)
    return row(
        nn.Linear(inputs, hidden), nn.ReLU(), drops(kind, schedule), nn.Linear(hidden, outputs)
    )


def forward_backward(model, x, g):
    "The pair forward and backward, for gradients of its weights."
    x, g = mi.Tensor(x), mi.Tensor(g)

    def step():
        for p in model.parameters():
            p.grad = None
        model(x).backward(g)

    return step


def torch_pair(sizes):
    "The same row in PyTorch."
    inputs, hidden, outputs = sizes
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Dropout(0.5),
        torch.nn.Linear(hidden, outputs),
    )  # fmt: skip


def torch_forward_backward(model, x, g):
    "The same passes in PyTorch."
    x, g = torch.tensor(x), torch.tensor(g)

    def step():
        for p in model.parameters():
            p.grad = None
        model(x).backward(g)

    return step


def control(x, g, sizes):
    "The dense products alone, in NumPy."
    inputs, hidden, outputs = sizes
    rng = np.random.default_rng(0)
    w1, w2 = (rng.normal(size=s).astype("float32") for s in ((inputs, hidden), (hidden, outputs)))

    def step():
        h = x @ w1
        h @ w2
        h.T @ g
        x.T @ (g @ w2.T)

    return step


def step(model, library, x, y):
    "A step of training with SGD."
    torches = library is torch
    x, y = (torch.tensor if torches else mi.Tensor)(x), (torch.tensor if torches else mi.Tensor)(y)
    loss_fn = (torch.nn if torches else nn).CrossEntropyLoss()
    optimizer = (torch.optim if torches else optim).SGD(model.parameters(), lr=0.01)

    def run():
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()

    return run


def network(kind):
    "784-2048-2048-10 with two dropouts, whose first pair is fused for `kind` pair."
    schedule = nn.GyroSchedule(1000, sigma=SIGMA, tau=TAU)
    body = pair(kind, (784, 2048, 2048))
    return nn.Sequential(body, nn.ReLU(), drops(kind, schedule), nn.Linear(2048, 10))


if __name__ == "__main__":
    environment()
    print(f"batch {BATCH}, tau {TAU}, blocks of {BLOCK}")
    rng = np.random.default_rng(0)
    for sizes in ((784, 2048, 10), (784, 2048, 2048)):
        x = rng.normal(size=(BATCH, sizes[0])).astype("float32")
        g = rng.normal(size=(BATCH, sizes[2])).astype("float32")
        rivals = {
            "minima, dropout": forward_backward(pair("dense", sizes), x, g),
            "minima, gyro masks": forward_backward(pair("masks", sizes), x, g),
            "minima, gyro blocks": forward_backward(pair("pair", sizes), x, g),
            "torch, dropout": torch_forward_backward(torch_pair(sizes), x, g),
            "numpy, products only": control(x, g, sizes),
        }
        times = measure(rivals, calls=1, rounds=15)
        report(f"layer pair {sizes}, forward and backward", times, {"minima, gyro blocks": 1.6})

    x = rng.normal(size=(BATCH, 784)).astype("float32")
    y = rng.integers(0, 10, BATCH)
    theirs = torch.nn.Sequential(
        torch_pair((784, 2048, 2048)), torch.nn.ReLU(), torch.nn.Dropout(0.5),
        torch.nn.Linear(2048, 10),
    )  # fmt: skip
    rivals = {
        "minima, dropout": step(network("dense"), mi, x, y),
        "minima, gyro masks": step(network("masks"), mi, x, y),
        "minima, gyro blocks": step(network("pair"), mi, x, y),
        "torch, dropout": step(theirs, torch, x, y),
    }
    times = measure(rivals, calls=1, rounds=15)
    report("training step 784-2048-2048-10, SGD", times, {"minima, gyro blocks": 1.3})
