"A recording, and a replay, need no more memory than the function: counted in bytes."

import gc
import tracemalloc

import numpy as np
import pytest

from programs import skip_unless_fused
import minima as mi
from minima import nn, optim
from minima import operators as ops
from minima.backend import Kernels, kernels_off
from minima.capture import CaptureError
from minima.capture.tape import Tape

SMALL = 1_500_000  # bytes of Python's own: instructions, the text of a plan


def peak(f, calls=3):
    "The most bytes that are in use at once in `calls` of `f`, beyond those that were before."
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(calls):
            f()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def training(hidden=512, batch=256):
    "A step of a network of some size; and how many bytes it writes into."
    mi.manual_seed(0)
    layers = nn.Linear(512, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Dropout(0.1)
    model = nn.Sequential(*layers, nn.Linear(hidden, 128), nn.ReLU(), nn.Linear(128, 10))
    adam, loss_fn = optim.Adam(model.parameters()), nn.CrossEntropyLoss()
    x = mi.Tensor(np.ones((batch, 512), "float32"))
    y = mi.Tensor(np.arange(batch) % 10)

    def step():
        adam.zero_grad()
        loss_fn(model(x), y).backward()
        adam.step()

    return step, 4 * sum(p.array.nbytes for p in model.parameters())  # and gradients, and two means


@pytest.mark.parametrize("kernels", [False, True])
def test_a_step_is_recorded_in_the_memory_of_the_step(kernels):
    "Beyond that, it must be able to put back what it writes."
    with kernels_off():
        if kernels:
            Kernels.on = True
        training()[0]()  # what is compiled and imported is not counted
        mi.capture(lambda x: x * 2, fuse=False)(mi.Tensor(np.ones(2)))
        plain = peak(training()[0])
        step, written = training()
        found = peak(mi.capture(step, fuse=False))
    assert found <= plain + SMALL + written


@pytest.mark.parametrize("backward", [False, True])
def test_a_recording_lets_go_what_the_function_lets_go(backward):
    "Fifty operations in a row, of which the function holds two or three arrays at a time."
    w = mi.Tensor(np.ones(2**18, "float32"), requires_grad=backward)
    x = mi.Tensor(np.ones(2**18, "float32"))

    def chain():
        w.grad = None
        with mi.enable_grad() if backward else mi.no_grad():
            y = w * x
            for _ in range(50):
                y = ops.permute(ops.reshape(y + 1, (2**9, 2**9)), (1, 0))
                y = ops.reshape(ops.permute(y, (1, 0)), (-1,))
            total = ops.sum(y)
            if backward:
                total.backward()
        return total.detach()

    assert peak(mi.capture(chain, fuse=False)) <= peak(chain) + SMALL


def test_plans_work_in_the_same_memory():
    "A small batch needs no memory of its own where a large one has been."
    mi.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    f = mi.capture(mi.no_grad()(lambda x: ops.exp(model(x)) * 2), fuse=False)
    sizes, peaks = [], []
    for batch in (64, 32, 8):
        x = mi.Tensor(np.ones((batch, 64), "float32"))
        wanted = f.function(x).array
        assert all(np.array_equal(f(x).array, wanted) for _ in range(4))
        sizes.append(sum(block.nbytes for block in f.pool))
        peaks.append(f.plan.peak)
        assert f"{f.plan.peak} bytes of memory" in str(f.plan)
    assert f.recordings == 3 and sizes[0] == sizes[1] == sizes[2] == peaks[0]
    assert all(0 < used <= sizes[0] for used in peaks)


def test_a_shadow_is_like_the_array_but_for_the_numbers():
    tape = Tape()

    def run():
        "Arrays, and their numbers: one, views of it, one beside it, an empty one."
        a = tape.lift(np.ones((4, 6), "float32")) * 2
        found = [a, a[1:3], a[::-1, ::2], tape.call(np.transpose, a), a + 1, a[0:0]]
        arrays = [r.value for r in found]
        assert all(tape.values[r.number] is array for r, array in zip(found, arrays))
        return arrays, [r.number for r in found]

    arrays, told = run()
    shadows = [tape.values[n] for n in told]
    for array, shadow in zip(arrays, shadows, strict=True):
        assert shadow is not array and shadow.flags.writeable
        assert (shadow.shape, shadow.dtype) == (array.shape, array.dtype)
        assert shadow.strides == array.strides
        assert shadow.flags.c_contiguous == array.flags.c_contiguous
    places = [
        [a.ctypes.data - found[0].ctypes.data for a in found[:4]] for found in (arrays, shadows)
    ]
    assert places[0] == places[1] == [0, 24, 72, 0]
    assert not any(np.may_share_memory(shadow, shadows[4]) for shadow in shadows[:4])


def test_what_was_written_is_put_back_in_the_reverse_order():
    "A part is written first, then the whole that it is a part of, then the part again."
    whole = np.arange(6.0)
    part, all_of_it = mi.Tensor(whole[2:4]), mi.Tensor(whole)

    def f(x):
        part.copy_(x[2:4] * 3)
        all_of_it.copy_(x * 2)
        part.copy_(part + 1)
        return x if ops.sum(x) > 0 else -x

    step = mi.capture(f, fuse=False)
    step(mi.Tensor(np.ones(6)))
    before = whole.copy()
    assert before.tolist() == [2, 2, 3, 3, 2, 2]
    with pytest.raises(CaptureError, match="reading a value"):
        step(mi.Tensor(np.full(6, 5.0)))
    assert np.array_equal(whole, before)


def test_the_loops_of_a_plan_hold_no_arrays():
    skip_unless_fused()
    w = mi.Tensor(np.ones(300))
    step = mi.capture(lambda x: ops.exp(x * w + 1) * 3 - x, fuse=True)
    for _ in range(3):
        step(mi.Tensor(np.ones(300)))
    (loop,) = step.plan.fused
    assert "def fused" in str(step.plan.fused)
    assert not any(isinstance(thing, np.ndarray) for thing in vars(loop).values())
    assert not hasattr(loop, "values")
