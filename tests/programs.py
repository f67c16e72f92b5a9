"Random programs of operators, which the tests of capture and of fusion share."

import numpy as np
import pytest
from hypothesis import strategies as some

import minima as mi
from minima import operators as ops
from minima.capture.fusion import can_fuse


def skip_unless_fused():
    "Skip a test, or a module of them, where nothing is fused."
    if not can_fuse():
        why = "no numba, or MINIMA_NUMBA=0, so nothing is fused"
        pytest.skip(why, allow_module_level=True)


def numbers(*shape, seed=0):
    "Random numbers, the same in each run."
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("float32")


def random_program(
    data,  # hypothesis's, from which it is drawn
    unary,  # functions of a Tensor
    binary,  # functions of two
    along,  # functions of a Tensor, of the same shape, that go along an axis
):
    "What makes a program and its weights: it takes what was computed again and again, and back."
    draw, program = lambda what: data.draw(some.sampled_from(what)), []
    for size in range(3, 3 + data.draw(some.integers(1, 8))):
        f = draw(draw([unary, binary, along]))
        places = [data.draw(some.integers(0, size - 1)) for _ in range(1 + (f in binary))]
        program.append((f, places))

    def make():
        weights = [mi.Tensor(numbers(4, seed=i), requires_grad=True) for i in range(2)]

        def run(x):
            values = [*weights, x]
            for w in weights:
                w.grad = None
            for f, places in program:
                values.append(f(*(values[i] for i in places)))
            total = ops.mean(ops.tanh(values[-1])) + ops.sum(weights[0] * weights[1])
            total.backward()
            return total

        return run, weights

    return make
