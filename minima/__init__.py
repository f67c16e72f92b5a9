"""A deep-learning framework small enough to read in an afternoon and good enough to use.

`import minima as mi`, then `mi.Tensor`, `mi.nn`, `mi.optim`, `mi.data`. Each module is exported from a notebook
in `nbs/`; read them in order. This file only names what is public, and is written by hand.

Operations and ways to begin are found here as well as in their modules: `mi.exp`, `mi.zeros`.
"""

__version__ = "0.1.0"

from minima import autograd  # isort: skip - first, since operators and it lean on each other
from minima import operators  # isort: skip - gives Tensors their methods
from minima import algorithms, data, functional, init, nn, optim, random, serialization, testing
from minima.autograd import (
    Tensor,
    enable_grad,
    from_dlpack,
    grad,
    hessian,
    hvp,
    is_grad_enabled,
    jacobian,
    jvp,
    no_grad,
    op,
    tensor,
    vjp,
)
from minima.backend import Device, cpu, cuda, get_default_dtype, set_default_dtype
from minima.random import Generator, manual_seed
from minima.serialization import load, save

__all__ = [
    "Device",
    "Generator",
    "Tensor",
    "algorithms",
    "autograd",
    "cpu",
    "cuda",
    "data",
    "enable_grad",
    "from_dlpack",
    "functional",
    "get_default_dtype",
    "grad",
    "hessian",
    "hvp",
    "init",
    "is_grad_enabled",
    "jacobian",
    "jvp",
    "load",
    "manual_seed",
    "nn",
    "no_grad",
    "op",
    "operators",
    "optim",
    "random",
    "save",
    "serialization",
    "set_default_dtype",
    "tensor",
    "testing",
    "vjp",
]


def __getattr__(name):
    for home in (init, operators):
        if not name.startswith("_") and hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"module 'minima' has no attribute {name!r}")
