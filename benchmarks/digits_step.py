"One training step of a small classifier (64-64-10, batch 32, Adam): PyTorch, minima, bare NumPy."

from rivals import environment, measure, report  # isort: skip - sets the number of threads

import numpy as np
import torch

import minima as mi
from minima import nn, optim
from minima.data import digits

HIDDEN, CLASSES, BATCH = 64, 10, 32


def minima_step(x, y):
    "A step with minima, and the model."
    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    loss_fn, optimizer = nn.CrossEntropyLoss(), optim.Adam(model.parameters())
    x, y = mi.Tensor(x), mi.Tensor(y)

    def step():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step, model


def torch_step(x, y, like, **options):
    "The same step with PyTorch, from the same weights."
    linear = [torch.nn.Linear(64, HIDDEN), torch.nn.Linear(HIDDEN, CLASSES)]
    for theirs, ours in zip(linear, (like[0], like[2]), strict=True):
        theirs.weight.data = torch.tensor(ours.weight.data.numpy().T.copy())
        theirs.bias.data = torch.tensor(ours.bias.data.numpy().ravel().copy())
    model = torch.nn.Sequential(linear[0], torch.nn.ReLU(), linear[1])
    loss_fn = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), **options)
    x, y = torch.tensor(x), torch.tensor(y)

    def step():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def numpy_step(x, y):
    "The same arithmetic in NumPy, by hand: the control."
    rng = np.random.default_rng(0)
    shapes = [(64, HIDDEN), (1, HIDDEN), (HIDDEN, CLASSES), (1, CLASSES)]
    weights = [rng.normal(scale=0.1, size=s).astype("float32") for s in shapes]
    means, squares = ([np.zeros_like(w) for w in weights] for _ in range(2))
    target, t = np.eye(CLASSES, dtype="float32")[y], 0

    def step():
        nonlocal t
        w1, b1, w2, b2 = weights
        h = np.maximum(x @ w1 + b1, 0)
        z = h @ w2 + b2
        e = np.exp(z - z.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        loss = -np.log((p * target).sum(axis=1)).mean()
        gz = (p - target) / len(x)
        gh = (gz @ w2.T) * (h > 0)
        gradients = x.T @ gh, gh.sum(axis=0, keepdims=True), h.T @ gz, gz.sum(axis=0, keepdims=True)
        t += 1
        for w, m, v, g in zip(weights, means, squares, gradients, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w -= 1e-3 / (1 - 0.9**t) * m / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return loss

    return step


def main():
    "Check that both train alike, then measure and print."
    environment()
    mi.manual_seed(0)
    train = digits("train")
    x, y = (t.numpy()[:BATCH] for t in train[:BATCH])
    ours, model = minima_step(x, y)
    rivals = {
        "torch": torch_step(x, y, model),
        "torch, fused Adam": torch_step(x, y, model, fused=True),
    }
    for _ in range(40):
        losses = [float(rivals["torch"]()), float(ours())]
    print(f"loss after 40 steps: torch {losses[0]:.5f}, minima {losses[1]:.5f}")
    assert abs(losses[0] - losses[1]) < 1e-4
    times = measure(rivals | {"minima": ours, "numpy, by hand": numpy_step(x, y)})
    report("a training step", times, {"minima": 2.0})


if __name__ == "__main__":
    main()
