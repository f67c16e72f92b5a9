"""`array_api_strict` as a backend of minima.

The array API standard is what array libraries have agreed on, and `array_api_strict` refuses what
goes beyond it: dtypes of two kinds in one operation, arrays of NumPy among its own, most ways of
indexing. Here its arrays live on a device that it only pretends to have, out of NumPy's reach.
"""

from functools import partial
from math import prod
from types import SimpleNamespace

import array_api_strict as strict
import numpy as np

from minima.backend import Backend

Array, DType = type(strict.zeros(0)), type(strict.float32)
CPU, HERE = strict.Device("CPU_DEVICE"), strict.Device("device1")
DTYPES = strict.__array_namespace_info__().dtypes(device=HERE)  # the library's, by NumPy's names
NAMES = {dtype: name for name, dtype in DTYPES.items()}

# ---- dtypes and devices: NumPy's names for them are understood ----


def own(dtype):
    "`dtype`, None or the library's or NumPy's, as the library's. Raises TypeError if it has none."
    if dtype is None or isinstance(dtype, DType):
        return dtype
    name = np.dtype(dtype).name
    if name not in DTYPES:
        raise TypeError(f"array_api_strict has no {name}; it has {', '.join(DTYPES)}")
    return DTYPES[name]


def asarray(data, dtype=None, **options):
    return strict.asarray(data, dtype=own(dtype), device=HERE, **options)


def astype(a, dtype):
    return strict.astype(a, own(dtype))


def zeros(shape, dtype=None):
    return strict.zeros(shape, dtype=own(dtype), device=HERE)


# ---- names and settings of NumPy's that the standard lacks ----


def swapaxes(a, axis1, axis2):
    order = list(range(a.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return strict.permute_dims(a, tuple(order))


def pad(a, pairs, constant_values=0):
    shape = tuple(before + n + after for n, (before, after) in zip(a.shape, pairs))
    out = strict.full(shape, constant_values, dtype=a.dtype, device=HERE)
    out[tuple(slice(before, before + n) for n, (before, _) in zip(a.shape, pairs))] = a
    return out


def around(a, decimals=0):
    return strict.round(a * 10.0**decimals) / 10.0**decimals


def argsort(a, axis=-1, kind=None):
    return strict.argsort(a, axis=axis, stable=kind == "stable")


def repeat(a, repeats):
    return strict.repeat(a, repeats if isinstance(repeats, int) else asarray(repeats))


def of_numbers(logical):
    "A function of masks as one of numbers, too."
    return lambda *arrays: logical(*(astype(a, "bool") for a in arrays))


def into(function):
    "`function` with NumPy's `out`."

    def writing(*args, out=None):
        y = function(*args)
        if out is None:
            return y
        out[...] = y
        return out

    return writing


INTO = "multiply divide sqrt maximum clip".split()
LOGICAL = "logical_and logical_or logical_xor logical_not".split()
xp = SimpleNamespace(
    **vars(strict)
    | {name: into(getattr(strict, name)) for name in INTO}
    | {name: of_numbers(getattr(strict, name)) for name in LOGICAL}
    | dict(
        asarray=asarray,
        astype=astype,
        zeros=zeros,
        arange=partial(strict.arange, device=HERE),
        swapaxes=swapaxes,
        pad=pad,
        round=around,
        argsort=argsort,
        repeat=repeat,
        cumsum=strict.cumulative_sum,
        invert=strict.bitwise_invert,
    )
)

# ---- the backend ----


class ArrayAPIStrict(Backend):
    def asarray(self, data, dtype=None, index=0):
        return asarray(data, dtype)

    def to_numpy(self, array):
        return np.asarray(array.to_device(CPU))

    def copy(self, array):
        return asarray(array, copy=True)

    def numpy_dtype(self, dtype):
        return np.dtype(NAMES[dtype] if isinstance(dtype, DType) else dtype)

    def get_at(self, array, key):
        places = self._places(array.shape, key)
        picked = strict.take(strict.reshape(array, (-1,)), asarray(places.reshape(-1)))
        return strict.reshape(picked, places.shape)

    def add_at(self, array, key, values):
        places = self._places(array.shape, key)
        if not places.size:
            return
        flat = strict.reshape(array, (-1,), copy=False)
        values = strict.reshape(strict.broadcast_to(values, places.shape), (-1,))
        for i, place in enumerate(places.reshape(-1).tolist()):
            flat[place] += values[i]

    def _places(self, shape, key):
        "Which elements of an array of `shape` the `key` picks, if they are counted in a row."
        key = tuple(self.to_numpy(k) if isinstance(k, Array) else k for k in key)
        return np.arange(prod(shape)).reshape(shape)[key]


backend = ArrayAPIStrict("array_api_strict", xp, Array)
