"""NVIDIA's GPUs, by CuPy. Written by hand.

`cards` says whether there is one that can be used, `cublas` multiplies matrices, `library` is the backend, `graphs` captures
steps. It is called `gpu`, since `minima.cuda(0)` is a device.
"""

from minima.gpu.cards import available

__all__ = ["available"]


def __getattr__(name):
    if name != "backend":  # which is made when the device `cuda` is first used
        raise AttributeError(f"module 'minima.gpu' has no attribute {name!r}")
    from minima.gpu.graphs import with_graphs
    from minima.gpu.library import make

    globals()["backend"] = with_graphs(make())
    return globals()["backend"]
