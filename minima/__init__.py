"""A deep-learning framework small enough to read in an afternoon and good enough to use.

`import minima as mi`, then `mi.Tensor`, `mi.nn`, `mi.optim`, `mi.data`. Each module is exported from a notebook
in `nbs/`; read them in order. This file only names what is public, and is written by hand.

Operations, ways to begin and dtypes are found here, too: `mi.exp`, `mi.zeros`, `mi.float32`.
"""

__version__ = "0.1.0"

from importlib import import_module as _import_module

from numpy import dtype as _dtype

from minima import autograd  # isort: skip - first, since operators and it lean on each other
from minima import operators  # isort: skip - gives Tensors their methods
from minima import kernels as _kernels  # isort: skip - says where they are, and imports none
from minima import data, init, nn, optim, random, serialization, testing
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
from minima.backend import Device, as_dtype, cpu, cuda, get_default_dtype, set_default_dtype
from minima.capture import capture
from minima.random import Generator, manual_seed
from minima.serialization import load, save

__all__ = [
    "Device",
    "Generator",
    "Tensor",
    "algorithms",
    "autograd",
    "capture",
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
    "trainer",
    "vjp",
]


def __getattr__(name):
    if name in _WHEN_ASKED_FOR:
        return _import_module(f"minima.{name}")
    if name in _DTYPES:
        return _dtype(as_dtype(_DTYPES[name]))
    for home in (init, operators):
        thing = getattr(home, name, None)
        if str(getattr(thing, "__module__", "")).startswith(home.__name__) and name[0] != "_":
            return thing
    raise AttributeError(f"module 'minima' has no attribute {name!r}")


_WHEN_ASKED_FOR = {"algorithms", "functional", "trainer"}  # not everybody needs them

_DTYPES = {
    "half": "float16",
    "float": "float32",
    "double": "float64",
    "int": "int32",
    "long": "int64",
    "bfloat16": "bfloat16",
    "bool": "bool",
    **{name: name for name in ("float16", "float32", "float64")},
    **{f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}
