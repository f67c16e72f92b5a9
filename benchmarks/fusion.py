"""What fusing saves: dropout, a sum and a layer norm, operation by operation and in one.

    python benchmarks/fusion.py [rows dim]

Prints, for forward and backward together, the time as a part of that of all operations one by one,
which part of the machine's copy bandwidth the unavoidable bytes are moved at, and the roofs for a
plot. The page on compiled norms shows these numbers beside the bytes that are moved and kept.
"""

from rivals import environment, measure  # isort: skip - sets the number of threads

import sys

import numpy as np
import torch

from minima import operators as ops
from minima.autograd import Tensor
from minima.backend import kernels_off
from minima.operators import fused
from minima.operators.fused import _numpy_parts, dropout_add_layer_norm
from minima.random import keep_mask

P, EPS = 0.1, 1e-5


def composed(x, residual, weight, bias, draw):
    "Each operation by itself, and the mask made once."
    keep = keep_mask(x.shape, P, *draw.tolist())
    z = x * Tensor(keep) / (1 - P) + residual
    centred = z - z.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / (variance + EPS) ** 0.5 * weight + bias


def three_layers(x, residual, weight, bias, draw):
    "Three operations."
    keep = Tensor(keep_mask(x.shape, P, *draw.tolist()))
    z = ops.dropout(x, keep, p=P) + residual
    return ops.normalize(z, weight, bias, axis=(-1,), eps=EPS)


def one(x, residual, weight, bias, draw):
    "One operation."
    return dropout_add_layer_norm(x, residual, weight, bias, draw, p=P, eps=EPS)


def both_ways(function, args, g):
    "Forward and backward of `function`, from the same numbers each time."
    leaves = [a for a in args if a.requires_grad]

    def run():
        for a in leaves:
            a.grad = None
        function(*args).backward(g)

    return run


def by_rules(run):
    "`run` without kernels."

    def off():
        with kernels_off():
            run()

    return off


def by_parts(run, parts):
    "`run` with the kernel of these `parts`."

    def with_parts():
        fused.register_parts(parts)
        run()

    return with_parts


def theirs(args, g):
    "The same in PyTorch."
    x, residual, weight, bias = (torch.tensor(a.detach().numpy(), requires_grad=True) for a in args)
    cotangent = torch.tensor(g.numpy())

    def run():
        for a in (x, residual, weight, bias):
            a.grad = None
        z = torch.nn.functional.dropout(x, P) + residual
        torch.nn.functional.layer_norm(z, weight.shape, weight, bias, EPS).backward(cotangent)

    return run


if __name__ == "__main__":
    environment()
    rows, dim = map(int, sys.argv[1:3] or (1024, 1024))
    rng = np.random.default_rng(0)
    shapes = (rows, dim), (rows, dim), (dim,), (dim,)
    args = [Tensor(rng.normal(size=s).astype("float32"), requires_grad=True) for s in shapes]
    g = Tensor(rng.normal(size=(rows, dim)).astype("float32"))
    args.append(Tensor(np.array([1, 2], dtype=np.uint64)))
    rivals = {
        "operation by operation": by_rules(both_ways(composed, args, g)),
        "three operations": by_rules(both_ways(three_layers, args, g)),
        "one, the rule": by_rules(both_ways(one, args, g)),
        "one, NumPy by rows": by_parts(both_ways(one, args, g), _numpy_parts),
        "torch": theirs(args[:4], g),
    }
    try:
        from minima.kernels.norms import _compiled_parts
    except ImportError:
        print("numba is not installed")
    else:
        rivals["one, compiled"] = by_parts(both_ways(one, args, g), _compiled_parts)
    source, a = np.ones((rows, dim), "float32"), np.ones((1024, 1024), "float32")
    target, out = np.empty_like(source), np.empty_like(a)
    rivals["copy"] = lambda: np.copyto(target, source)
    rivals["product"] = lambda: np.dot(a, a, out=out)
    for run in rivals.values():
        run()
    times = measure(rivals, calls=max(1, 2**20 // (rows * dim)), rounds=15)
    copy, product = 2 * source.nbytes / times.pop("copy"), 2 * 1024**3 / times.pop("product")
    print(f"{rows} x {dim}; copying {copy / 1e3:.0f} GB/s, products {product / 1e3:.0f} GFLOP/s")
    for name, time in times.items():
        part = time / times["operation by operation"]
        share = 8 * source.nbytes / time / copy
        print(f"  {name:24} time {part:5.2f}   8 arrays at {share:.3f} of the copy's speed")
