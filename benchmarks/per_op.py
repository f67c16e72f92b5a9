"The price of one recorded operation, and of a chain of 20: PyTorch, minima, bare NumPy."

from rivals import environment, measure, report  # isort: skip - sets the number of threads

import numpy as np
import torch

import minima as mi

LENGTH = 20


def main():
    "Measure and print both tables."
    environment()
    numbers = np.random.default_rng(0).normal(size=(2, 64)).astype("float32")
    a, b = (mi.Tensor(x, requires_grad=True) for x in numbers)
    p, q = (torch.tensor(x, requires_grad=True) for x in numbers)
    x, y = numbers

    rivals = {
        "torch": lambda: p * q,
        "minima": lambda: a * b,
        "numpy, unrecorded": lambda: x * y,
    }
    report("a * b on 64 floats, recorded", measure(rivals, calls=2000), {"minima": 1.3})

    def chain(start, factor, cotangent):
        out = start
        for _ in range(LENGTH):
            out = out * factor
        start.grad = factor.grad = None
        out.backward(cotangent)

    def by_hand():
        out = [x]
        for _ in range(LENGTH):
            out.append(out[-1] * y)
        g, dy = ones, 0.0
        for value in reversed(out[:-1]):
            dy = dy + g * value
            g = g * y

    ones = np.ones(64, "float32")
    ours, theirs = mi.Tensor(ones), torch.tensor(ones)
    rivals = {
        "torch": lambda: chain(p, q, theirs),
        "minima": lambda: chain(a, b, ours),
        "numpy, by hand": by_hand,
    }
    report(f"a chain of {LENGTH} products, forward and backward", measure(rivals), {"minima": 2.0})


if __name__ == "__main__":
    main()
