"Every operator against PyTorch, one row each, and against arithmetic; then its corners."

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minima import operators as ops
from minima.autograd import ShapeError, Tensor, grad
from minima.autograd.tape import _written
from minima.backend import get_default_dtype, set_default_dtype
from minima.random import keep_mask
from minima.testing import gradcheck, vs_torch

# ---- numbers ----


def normal(rng, shape):
    return rng.normal(size=shape)


def positive(rng, shape):
    return rng.uniform(0.2, 3.0, size=shape)


def share(rng, shape):
    "Between 0 and 1, and not close to either."
    return rng.uniform(0.1, 0.9, size=shape)


def away(rng, shape):
    "Not near zero, where there may be a kink or a pole."
    return rng.uniform(0.2, 3.0, size=shape) * rng.choice([-1.0, 1.0], size=shape)


def distinct(rng, shape):
    "No two alike, and none close to a half."
    return rng.permutation(np.prod(shape, dtype=int)).reshape(shape) * 0.37 - 1.6


def mask(rng, shape):
    return rng.random(shape) < 0.6


def words(rng, shape):
    "Unsigned integers of 64 bits: a seed, and the number of a draw."
    return rng.integers(0, 2**64, size=shape, dtype="uint64")


def below(n):
    return lambda rng, shape: rng.integers(0, n, size=shape)


LAYOUTS = {
    "as it is": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T if a.ndim else a,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1] if a.ndim else a,
}


def numbers(makers, shapes, layout="as it is", seed=0):
    "One read-only array for each shape: an operator that writes into its arguments cannot."
    rng = np.random.default_rng(seed)
    makers = makers if isinstance(makers, tuple) else (makers,) * len(shapes)
    arrays = [LAYOUTS[layout](np.asarray(make(rng, s))) for make, s in zip(makers, shapes)]
    for a in arrays:
        a.flags.writeable = False
    return arrays


# ---- one row per operator ----


@dataclass
class Row:
    "An operator, PyTorch's, the shapes of their arguments, and the settings to try."

    name: str
    ours: object
    theirs: object  # the name of a torch function, or a function of (torch, *tensors, **settings)
    shapes: list
    make: object = normal
    settings: list = field(default_factory=lambda: [{}])
    smooth: bool = True  # whether differences can be compared with gradients

    def cases(self):
        return list(itertools.product(self.shapes, self.settings))

    def ours_with(self, settings):
        return lambda *a: self.ours(*a, **settings)

    def theirs_with(self, torch, settings):
        if callable(self.theirs):
            return lambda *a: self.theirs(torch, *a, **settings)
        function = torch
        for part in self.theirs.split("."):
            function = getattr(function, part)
        return lambda *a: function(*a, **settings)


def reduction(name):
    "PyTorch's reduction by its own names for the settings; without an axis it takes them all."

    def theirs(torch, a, axis=None, axes=None, keepdims=False, **settings):
        dim = axis if axes is None else axes
        dim = list(range(a.ndim)) if dim is None else dim
        return getattr(torch, name)(a, dim=dim, keepdim=keepdims, **settings)

    return theirs


def axis_by_axis(name):
    "PyTorch's reduction that takes one axis at a time."

    def theirs(torch, a, axis=None, axes=None, keepdims=False):
        dim = axis if axes is None else axes
        dims = range(a.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim
        for i in sorted((i % a.ndim for i in dims), reverse=True):
            a = getattr(torch, name)(a, dim=i, keepdim=keepdims)
        return a

    return theirs


def norm_of_torch(torch, a, ord=2, axis=None, keepdims=False):
    return torch.linalg.vector_norm(a, ord, dim=axis, keepdim=keepdims)


def with_zeros(rng, shape):
    "About a third of them exactly 0."
    return rng.normal(size=shape) * (rng.random(shape) < 0.7)


def values(operation):
    return lambda *a, **settings: operation(*a, **settings).values


def indices(operation):
    return lambda *a, **settings: operation(*a, **settings).indices


def by_dim(name):
    "PyTorch's function, with our name for its `dim`."
    return lambda torch, *a, axis=-1, **settings: getattr(torch, name)(*a, dim=axis, **settings)


def pieces(name):
    "PyTorch's pieces one after another, so that each has been compared."

    def theirs(torch, a, size, axis=0):
        cut = getattr(torch, name)(a, size, axis)
        return torch.cat([i * p.flatten() for i, p in enumerate(cut)])

    return theirs


def our_pieces(operation):
    def ours(a, size, axis=0):
        return ops.concat([i * p.reshape(-1) for i, p in enumerate(operation(a, size, axis))])

    return ours


def added(torch, a, i, src, axis=0):
    "PyTorch adds from a larger `src`, too, but fails on the way back."
    return torch.scatter_add(a, axis, i, src[tuple(slice(n) for n in i.shape)])


def frame(torch, a, pad_width, constant_values=0):
    pair = (pad_width, pad_width) if isinstance(pad_width, int) else pad_width
    pairs = (pair,) * a.ndim if isinstance(pair[0], int) else pair
    flat = [n for pair in reversed(pairs) for n in pair]
    return torch.nn.functional.pad(a, flat, value=constant_values)


def argument(name):
    def theirs(torch, a, axis=None, keepdims=False):
        return getattr(torch, name)(a, dim=axis, keepdim=keepdims)

    return theirs


def normalised_by_layer(torch, x, *affine, axis, eps):
    shape = [x.shape[i] for i in axis]
    affine = [p.reshape(shape) for p in affine]
    return torch.nn.functional.layer_norm(x, shape, *affine, eps=eps)


def normalised_by_batch(torch, x, *affine, axis, eps):
    affine = dict(zip(("weight", "bias"), (p.reshape(-1) for p in affine)))
    return torch.nn.functional.batch_norm(x, None, None, training=True, eps=eps, **affine)


def bent(torch, x, w, b=None, activation=None):
    y = torch.nn.functional.linear(x, w.T, b if b is None else b[0])
    return getattr(torch.nn.functional, activation)(y)


def kept(torch, draw, shape, p):
    "What is kept of (seed, offset), a tensor of two words."
    return torch.tensor(keep_mask(tuple(shape), p, *draw.tolist()))


def dropped_added_normalised(torch, x, residual, weight, bias, draw, p, eps):
    z = x * kept(torch, draw, x.shape, p) / (1 - p) + residual
    return torch.nn.functional.layer_norm(z, weight.shape, weight, bias, eps)


def each_surprise(torch, logits, labels, axis=1):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def yes_or_no(torch, z, t, w=None):
    "PyTorch's own does not differentiate by `pos_weight`."
    if w is None:
        return torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    yes, no = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    return -t * w * yes - (1 - t) * no


def huber(torch, d, delta=1.0):
    return torch.nn.functional.huber_loss(d, torch.zeros_like(d), "none", delta)


ONE = [((),), ((5,),), ((3, 4),), ((2, 1, 3),), ((0, 3),)]
PAIRS = [
    ((), ()), ((4,), ()), ((3, 4), (3, 4)), ((3, 4), (4,)), ((1, 4), (3, 1)),
    ((2, 1, 3), (4, 1)), ((1,), (1, 1)), ((0, 3), (3,)), ((0,), (1,)),
]  # fmt: skip
PRODUCTS = [
    ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((1, 1), (1, 1)),
    ((5, 2, 3), (3,)), ((3,), (5, 3, 4)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)), ((1, 2, 3), (5, 3, 4)), ((5, 2, 3), (1, 3, 4)),
    ((2, 1, 2, 3), (3,)), ((3,), (2, 1, 3, 4)), ((0,), (0,)), ((3,), (3, 0)), ((0,), (2, 0, 3)),
    ((2, 1, 2, 3), (4, 3, 5)), ((0, 3), (3, 4)), ((2, 0), (0, 3)), ((0, 2, 3), (3, 4)),
]  # fmt: skip
AXES = [
    {}, {"keepdims": True}, {"axis": 0}, {"axis": -1}, {"axis": (0, 2)}, {"axis": (-1, 0)},
    {"axes": (1,)}, {"axes": [0, 1], "keepdims": True}, {"axis": 1, "keepdims": True},
]  # fmt: skip
CUBES = [((2, 3, 4),), ((1, 3, 2),), ((4, 1, 1),)]
CORRECTIONS = [a | {"correction": c} for a, c in zip(AXES, itertools.cycle([0, 1, 0.5]))]

EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)), ("ij,kj->ki", (2, 3), (4, 3)),
    ("ji", (2, 3)), ("ij->ji", (2, 3)), ("ij->", (2, 3)), ("ij->j", (2, 3)), ("ii", (3, 3)),
    ("ii->i", (3, 3)), ("iij->j", (3, 3, 2)), ("iji->j", (3, 2, 3)), ("iji->ij", (3, 2, 3)),
    ("iii->i", (3, 3, 3)), ("ijij->ji", (2, 3, 2, 3)), ("i,i", (4,), (4,)), ("i,j", (4,), (3,)),
    ("i,i->i", (4,), (4,)), ("ij,ij->i", (2, 3), (2, 3)), ("bij,bjk->bik", (4, 2, 3), (4, 3, 2)),
    ("bij,bjk->kb", (4, 2, 3), (4, 3, 2)), ("bij,jk->k", (4, 2, 3), (3, 2)), (",", (), ()),
    (",i->i", (), (3,)), ("i->", (0,)), ("ij,jk->ik", (2, 0), (0, 3)),
    ("ij,jk->ik", (0, 2), (2, 3)), ("...ij,...jk->...ik", (4, 2, 3), (3, 2)),
    ("...ij,...jk->...ik", (1, 2, 3), (4, 3, 2)), ("...ij,jk", (5, 4, 2, 3), (3, 2)),
    ("i...,i...->...", (3, 2, 4), (3, 4)), ("...", (2, 3)), ("...i->...", (2, 3)),
    ("i...j->j...i", (2, 3, 4)), ("...,...", (2, 3), (3,)), ("...ii", (2, 3, 3)),
    ("i...->i", (2, 3, 4)), ("ij,ij->ij", (2, 1), (2, 3)), ("ij,jk->ik", (2, 1), (3, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)), ("i,ij,j->", (2,), (2, 3), (3,)),
    ("a,b,c", (2,), (3,), (2,)), ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("nlk,nmk,kj->nlmj", (2, 3, 4), (2, 2, 4), (4, 3)), ("ij,ik,il->jkl", (2, 3), (2, 4), (2, 2)),
    ("ii,jj->ij", (2, 2), (3, 3)), (" i j , j k -> i k ", (2, 3), (3, 4)),
    ("Ba,aC->BC", (2, 3), (3, 4)), ("Ba,aC", (2, 3), (3, 4)), ("ij,j,i->", (2, 3), (3,), (2,)),
]  # fmt: skip

ROWS = [
    # arithmetic
    Row("add", ops.add, "add", PAIRS),
    Row("subtract", ops.subtract, "subtract", PAIRS),
    Row("multiply", ops.multiply, "multiply", PAIRS),
    Row("divide", ops.divide, "divide", PAIRS, (normal, away)),
    Row("power", ops.power, "pow", PAIRS, (positive, normal)),
    Row("power, by 3", lambda a: a**3, lambda torch, a: a**3, ONE),
    Row("power, by 0.5", lambda a: a**0.5, lambda torch, a: a**0.5, ONE, positive),
    Row("power, by -1", lambda a: ops.power_scalar(a, -1), lambda torch, a: a**-1, ONE, away),
    Row("power, of 2", lambda a: 2**a, lambda torch, a: 2**a, ONE),
    Row("negate", ops.negate, "neg", ONE),
    Row("matmul", ops.matmul, "matmul", PRODUCTS),
    # functions of one argument
    Row("exp", ops.exp, "exp", ONE),
    Row("expm1", ops.expm1, "expm1", ONE),
    Row("log", ops.log, "log", ONE, positive),
    Row("log1p", ops.log1p, "log1p", ONE, positive),
    Row("sqrt", ops.sqrt, "sqrt", ONE, positive),
    Row("sin", ops.sin, "sin", ONE),
    Row("cos", ops.cos, "cos", ONE),
    Row("abs", ops.abs, "abs", ONE, away),
    Row("sign", ops.sign, "sign", ONE, away),
    Row("floor", ops.floor, "floor", ONE, distinct),
    Row("round", ops.round, "round", ONE, lambda rng, shape: distinct(rng, shape) + 0.013,
        [{}, {"decimals": 1}, {"decimals": -1}]),
    Row("tanh", ops.tanh, "tanh", ONE),
    Row("log2", ops.log2, "log2", ONE, positive),
    Row("log10", ops.log10, "log10", ONE, positive),
    Row("exp2", ops.exp2, "exp2", ONE),
    Row("tan", ops.tan, "tan", ONE),
    Row("sinh", ops.sinh, "sinh", ONE),
    Row("cosh", ops.cosh, "cosh", ONE),
    Row("ceil", ops.ceil, "ceil", ONE, distinct),
    Row("trunc", ops.trunc, "trunc", ONE, distinct),
    Row("square", ops.square, "square", ONE),
    Row("reciprocal", ops.reciprocal, "reciprocal", ONE, away),
    Row("rsqrt", ops.rsqrt, "rsqrt", ONE, positive),
    Row("sigmoid", ops.sigmoid, "sigmoid", ONE),
    Row("erf", ops.erf, "erf", ONE),
    Row("relu", ops.relu, "relu", ONE, away),
    Row("leaky_relu", ops.leaky_relu, "nn.functional.leaky_relu", ONE, away,
        [{}, {"negative_slope": 0.2}, {"negative_slope": -0.5}, {"negative_slope": 0}]),
    Row("softplus", ops.softplus, "nn.functional.softplus", ONE, away,
        [{}, {"beta": 2}, {"beta": 0.5, "threshold": 40}, {"threshold": -0.1}]),
    Row("silu", ops.silu, "nn.functional.silu", ONE),
    Row("gelu", ops.gelu, "nn.functional.gelu", ONE),
    Row("gelu, by tanh", ops.gelu, "nn.functional.gelu", ONE,
        settings=[{"approximate": "tanh"}, {"approximate": "none"}]),
    # functions of two
    Row("floor_divide", ops.floor_divide,
        lambda torch, a, b: torch.floor_divide(a.detach(), b.detach()), PAIRS, (distinct, away),
        smooth=False),
    Row("remainder", ops.remainder, "remainder", PAIRS, (distinct, away)),
    Row("logaddexp", ops.logaddexp, "logaddexp", PAIRS),
    Row("lerp", ops.lerp, "lerp", [(*p, ()) for p in PAIRS]),
    Row("masked_fill", lambda a, m: ops.masked_fill(a, m, 7.0),
        lambda torch, a, m: a.masked_fill(m, 7.0), [((3, 4), (4,)), ((), ()), ((0,), (0,))],
        (normal, mask)),
    Row("isclose", ops.isclose, "isclose", PAIRS, lambda rng, shape: 1.0 * below(2)(rng, shape),
        smooth=False),
    # choosing
    Row("maximum", ops.maximum, "maximum", PAIRS),
    Row("minimum", ops.minimum, "minimum", PAIRS),
    Row("clip", ops.clip, "clip", ONE, distinct,
        [{"min": -1.0}, {"max": 0.5}, {"min": -1, "max": 0.5}]),
    Row("where", ops.where, "where", [(p[0], *p) for p in PAIRS], (mask, normal, normal)),
    Row("equal", ops.equal, "eq", PAIRS, below(2)),
    Row("not_equal", ops.not_equal, "ne", PAIRS, below(2)),
    Row("less", ops.less, "less", PAIRS, below(2)),
    Row("less_equal", ops.less_equal, "less_equal", PAIRS, below(2)),
    Row("greater", ops.greater, "greater", PAIRS, below(2)),
    Row("greater_equal", ops.greater_equal, "greater_equal", PAIRS, below(2)),
    Row("isfinite", ops.isfinite, "isfinite", ONE, smooth=False),
    Row("isinf", ops.isinf, "isinf", ONE, smooth=False),
    Row("isnan", ops.isnan, "isnan", ONE, smooth=False),
    Row("logical_and", ops.logical_and, "logical_and", PAIRS, below(3)),
    Row("logical_or", ops.logical_or, "logical_or", PAIRS, below(3)),
    Row("logical_xor", ops.logical_xor, "logical_xor", PAIRS, below(3)),
    Row("logical_not", ops.logical_not, "logical_not", ONE, smooth=False),
    Row("bitwise_and", ops.bitwise_and, "bitwise_and", PAIRS, below(8)),
    Row("bitwise_or", ops.bitwise_or, "bitwise_or", PAIRS, below(8)),
    Row("bitwise_xor", ops.bitwise_xor, "bitwise_xor", PAIRS, below(8)),
    Row("bitwise_not", ops.bitwise_not, "bitwise_not", [*ONE], below(8)),
    Row("bitwise_and, of masks", ops.bitwise_and, "bitwise_and", PAIRS, mask),
    Row("bitwise_or, of masks", ops.bitwise_or, "bitwise_or", PAIRS, mask),
    Row("bitwise_xor, of masks", ops.bitwise_xor, "bitwise_xor", PAIRS, mask),
    Row("bitwise_not, of a mask", ops.bitwise_not, "bitwise_not", [*ONE], mask),
    # reductions
    Row("summation", ops.summation, reduction("sum"), CUBES, settings=AXES),
    Row("mean", ops.mean, reduction("mean"), CUBES, settings=AXES),
    Row("var", ops.var, reduction("var"), CUBES[:1], settings=CORRECTIONS),
    Row("std", ops.std, reduction("std"), CUBES[:1], settings=CORRECTIONS),
    Row("prod", ops.prod, axis_by_axis("prod"), CUBES, settings=AXES),
    Row("prod, with zeros", ops.prod, axis_by_axis("prod"), [((4, 3, 5),), ((2, 1, 1),)],
        with_zeros, AXES),
    Row("prod, of rows of none", ops.prod, axis_by_axis("prod"), [((0, 3),), ((3, 0),)],
        settings=[{"axis": 0}, {"axis": 1, "keepdims": True}, {}]),
    Row("any", ops.any, axis_by_axis("any"), CUBES, mask, AXES),
    Row("all", ops.all, axis_by_axis("all"), CUBES, mask, AXES),
    Row("any, of numbers", ops.any, "any", [*ONE], with_zeros, smooth=False),
    Row("all, of numbers", ops.all, "all", [*ONE], with_zeros, smooth=False),
    Row("cumsum", ops.cumsum, by_dim("cumsum"), [*CUBES, ((2, 0, 3),)],
        settings=[{"axis": 0}, {"axis": 1}, {"axis": -1}]),
    Row("cumsum, of all", ops.cumsum, lambda torch, a: a.reshape(-1).cumsum(0), CUBES),
    Row("norm", ops.norm, norm_of_torch, CUBES, away, [
        {}, {"axis": 0, "keepdims": True}, {"ord": 1}, {"ord": 1.5, "axis": (0, 2)},
        {"ord": 2, "axis": (-1, 0)}, {"ord": 3, "axis": -1}, {"ord": 0.5}, {"ord": 0, "axis": 1},
        {"ord": np.inf, "axis": 1, "keepdims": True}, {"ord": -np.inf}, {"ord": -2, "axis": 0}]),
    Row("norm, with zeros", ops.norm, norm_of_torch, [((4, 3, 5),)], with_zeros,
        [{}, {"axis": (0, 1)}, {"ord": 4, "axis": (1, 2)}]),
    Row("norm, of one or none", ops.norm, norm_of_torch, [((),), ((1,),), ((0,),), ((0, 3),)],
        settings=[{}, {"ord": 1}, {"ord": 3}]),
    Row("max", ops.max, reduction("amax"), CUBES, distinct, AXES),
    Row("min", ops.min, reduction("amin"), CUBES, distinct, AXES),
    Row("logsumexp", ops.logsumexp, reduction("logsumexp"), CUBES, settings=AXES),
    Row("argmax", ops.argmax, argument("argmax"), CUBES, distinct,
        [{}, {"axis": 0}, {"axis": -1, "keepdims": True}], smooth=False),
    Row("argmin", ops.argmin, argument("argmin"), CUBES, distinct,
        [{}, {"axis": 0}, {"axis": -1, "keepdims": True}], smooth=False),
    Row("summation, of one or none", ops.summation, "sum", ONE),
    Row("mean, of one", ops.mean, "mean", [((),), ((1,),), ((5,),)]),
    Row("max, of one", ops.max, "max", [((),), ((1,),), ((5,),)]),
    Row("summation, of rows of none", ops.summation, reduction("sum"),
        [((0, 3),), ((3, 0),)], settings=[{"axis": 0}, {"axis": (1,)}]),
    *(Row(f"{f.__name__}, of a number", f, theirs, [((),)], settings=[{"axis": 0}, {"axis": -1}])
      for f, theirs in [
          (ops.softmax, by_dim("softmax")), (ops.log_softmax, by_dim("log_softmax")),
          (ops.logsumexp, by_dim("logsumexp")), (ops.summation, by_dim("sum")),
          (ops.mean, by_dim("mean")), (ops.max, by_dim("amax")), (ops.min, by_dim("amin")),
          (ops.prod, by_dim("prod")), (ops.cumsum, by_dim("cumsum")), (ops.norm, norm_of_torch),
      ]),
    Row("softmax", ops.softmax,
        lambda torch, a, axis=-1: torch.softmax(a, axis), [*CUBES, ((1, 0, 2),)],
        settings=[{}, {"axis": 0}, {"axis": -1}, {"axis": 2}]),
    Row("log_softmax", ops.log_softmax,
        lambda torch, a, axis=-1: torch.log_softmax(a, axis), [*CUBES, ((1, 0, 2),)],
        settings=[{}, {"axis": 0}, {"axis": -1}, {"axis": 2}]),
    # shapes
    Row("reshape", ops.reshape, "reshape", [((3, 4),), ((2, 3, 2),)],
        settings=[{"shape": s} for s in [(12,), (-1,), (4, 3), (2, -1), (1, 12, 1)]]),
    Row("squeeze, of a number", ops.squeeze, lambda torch, a, axis: a.squeeze(axis), [((),)],
        settings=[{"axis": 0}, {"axis": -1}]),
    Row("expand_dims, of a number", ops.expand_dims, lambda torch, a, axis: a.unsqueeze(axis),
        [((),)], settings=[{"axis": 0}, {"axis": -1}]),
    Row("reshape, of one or none", ops.reshape, "reshape", [((),), ((1, 1),)],
        settings=[{"shape": (1,)}, {"shape": ()}]),
    Row("transpose", ops.transpose,
        lambda torch, a, axes=None: a.permute(axes or tuple(range(a.ndim))[::-1]), CUBES,
        settings=[{}, {"axes": (2, 0, 1)}, {"axes": (-1, 0, -2)}, {"axes": [1, 2, 0]}]),
    Row("transpose, of two", ops.transpose, lambda torch, a, axes: a.transpose(*axes), CUBES,
        settings=[{"axes": (0, 1)}, {"axes": (-1, -3)}]),
    Row("transpose, of few", ops.transpose,
        lambda torch, a: a.permute(tuple(range(a.ndim))[::-1]), ONE),
    Row("swapaxes", ops.swapaxes, lambda torch, a, axis1, axis2: a.swapaxes(axis1, axis2), CUBES,
        settings=[{"axis1": 0, "axis2": -1}, {"axis1": 1, "axis2": 1}]),
    Row("squeeze", ops.squeeze,
        lambda torch, a, axis=None: a.squeeze() if axis is None else a.squeeze(axis),
        [((1, 3, 1),), ((1, 1, 1),), ((2, 3, 1),)],
        settings=[{}, {"axis": 0}, {"axis": -1}, {"axis": (0, 2)}, {"axis": 1}]),
    Row("expand_dims", ops.expand_dims, lambda torch, a, axis: a.unsqueeze(axis), [((3, 4),)],
        settings=[{"axis": i} for i in (0, 1, 2, -1, -3)]),
    Row("broadcast_to", ops.broadcast_to, lambda torch, a, shape: a.broadcast_to(shape),
        [((3, 1),), ((1,),), ((),)], settings=[{"shape": (3, 4)}, {"shape": (2, 3, 3)}]),
    Row("clone", ops.clone, "clone", ONE),
    Row("astype", ops.astype, lambda torch, a, dtype: a.to(getattr(torch, dtype)), ONE, away,
        settings=[{"dtype": "float64"}, {"dtype": "int64"}]),
    Row("concat", lambda *a, axis=0: ops.concat(a, axis=axis),
        lambda torch, *a, axis=0: torch.concat(a, axis),
        [((2, 3), (2, 3)), ((2, 3),), ((2, 3), (2, 3), (2, 3))],
        settings=[{}, {"axis": 1}, {"axis": -1}]),
    Row("concat, of unequals", lambda *a: ops.concat(a), lambda torch, *a: torch.concat(a),
        [((2, 3), (4, 3), (0, 3)), ((1,), (5,))]),
    Row("stack", lambda *a, axis=0: ops.stack(a, axis=axis),
        lambda torch, *a, axis=0: torch.stack(a, axis), [((2, 3), (2, 3)), ((2, 3),), ((), ())],
        settings=[{}, {"axis": -1}]),
    Row("flatten", ops.flatten, "flatten", [((2, 3, 4),), ((1, 0, 2),)],
        settings=[{}, {"start_dim": 1}, {"end_dim": -2}, {"start_dim": 1, "end_dim": 1}]),
    Row("flatten, of few", ops.flatten, "flatten", ONE),
    Row("permute", ops.permute, lambda torch, a, axes: torch.permute(a, axes), CUBES,
        settings=[{"axes": (2, 0, 1)}, {"axes": (-1, 0, -2)}, {"axes": [0, 1, 2]}]),
    Row("flip", ops.flip,
        lambda torch, a, axis=None: torch.flip(
            a, tuple(range(a.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
        ), [*CUBES, ((2, 0, 3),)],
        settings=[{}, {"axis": 0}, {"axis": -1}, {"axis": (0, 2)}, {"axis": ()}]),
    Row("roll", ops.roll, lambda torch, a, shift, axis=None: torch.roll(a, shift, axis),
        [*CUBES, ((2, 0, 3),)],
        settings=[{"shift": 1}, {"shift": -5}, {"shift": 2, "axis": 1},
                  {"shift": (1, -1), "axis": (0, -1)}]),
    Row("pad", ops.pad, frame, [((2, 3),), ((0, 3),)],
        settings=[{"pad_width": 1}, {"pad_width": (0, 2), "constant_values": 1.5},
                  {"pad_width": ((1, 0), (2, 3))}, {"pad_width": [[0, 0], [0, 1]]}]),
    Row("expand", lambda a, size: ops.expand(a, size), lambda torch, a, size: a.expand(size),
        [((2, 1, 3),)], settings=[{"size": (2, 4, 3)}, {"size": (5, -1, 4, -1)}]),
    Row("movedim", ops.movedim, "movedim", [((2, 3, 4),), ((2, 0, 4),)],
        settings=[{"source": 0, "destination": -1}, {"source": (2, 0), "destination": (0, 1)}]),
    Row("unbind", lambda a, axis=0: ops.stack(ops.unbind(a, axis)[::-1]),
        lambda torch, a, axis=0: torch.stack(a.unbind(axis)[::-1]), [((3, 2),)],
        settings=[{}, {"axis": 1}, {"axis": -2}]),
    Row("narrow", ops.narrow, lambda torch, a, axis, start, length: a.narrow(axis, start, length),
        [((3, 4),)], settings=[{"axis": 1, "start": 1, "length": 2},
                               {"axis": -2, "start": -2, "length": 1}]),
    Row("index_select", lambda a, i, axis=0: ops.index_select(a, axis, i),
        lambda torch, a, i, axis=0: torch.index_select(a, axis, i), [((3, 3), (4,))],
        (normal, below(3)), settings=[{}, {"axis": -1}]),
    Row("masked_select", ops.masked_select, "masked_select", [((3, 4), (3, 1)), ((4,), (2, 4))],
        (normal, mask)),
    Row("nonzero", ops.nonzero, "nonzero", [((3, 4),), ((0, 2),)], with_zeros, smooth=False),
    Row("t", ops.t, "t", [((2, 3),), ((3,),), ((),)]),
    Row("diagonal", ops.diagonal,
        lambda torch, a, offset=0, axis1=0, axis2=1: torch.diagonal(a, offset, axis1, axis2),
        [((3, 2, 4),), ((0, 2, 3),)],
        settings=[{}, {"offset": 1}, {"offset": -2}, {"offset": 9}, {"axis1": -1, "axis2": 0}]),
    Row("trace", ops.trace, "trace", [((3, 4),), ((2, 2),)]),
    Row("mm", ops.mm, "mm", [((2, 3), (3, 4)), ((0, 3), (3, 2))]),
    Row("bmm", ops.bmm, "bmm", [((5, 2, 3), (5, 3, 4)), ((0, 2, 3), (0, 3, 2))]),
    Row("tril", ops.tril, lambda torch, a, k=0: torch.tril(a, k),
        [((3, 3),), ((2, 3, 4),), ((4, 2),), ((0, 3),)], settings=[{}, {"k": 1}, {"k": -2}]),
    Row("triu", ops.triu, lambda torch, a, k=0: torch.triu(a, k),
        [((3, 3),), ((2, 3, 4),), ((4, 2),), ((0, 3),)], settings=[{}, {"k": 1}, {"k": -2}]),
    # cutting and repeating
    Row("split", our_pieces(ops.split), pieces("split"), [((4, 6, 4),)],
        settings=[{"size": 2}, {"size": 3, "axis": 1}, {"size": 9}, {"size": [1, 0, 3]},
                  {"size": (2, 4), "axis": -2}]),
    Row("split, of none", our_pieces(ops.split), pieces("split"), [((0, 2),)],
        settings=[{"size": 2}, {"size": [0, 0]}, {"size": [0, 2], "axis": 1}]),
    Row("chunk", our_pieces(ops.chunk), pieces("chunk"), [((4, 5, 7),), ((1, 1, 2),)],
        settings=[{"size": 2}, {"size": 3, "axis": 1}, {"size": 4, "axis": -1}, {"size": 1}]),
    Row("tile", ops.tile, lambda torch, a, reps: torch.tile(a, reps),
        [((2, 3),), ((),), ((0, 2),)],
        settings=[{"reps": r} for r in [(2,), (3, 2), (2, 1, 3), (0, 2), ()]]),
    Row("repeat", ops.repeat, lambda torch, a, reps: a.repeat(reps), [((2, 3),), ((),), ((0, 2),)],
        settings=[{"reps": r} for r in [(3, 2), (2, 1, 3), (0, 2)]]),
    Row("repeat_interleave", ops.repeat_interleave,
        lambda torch, a, repeats, axis=None: torch.repeat_interleave(
            a, torch.tensor(repeats) if isinstance(repeats, list) else repeats, axis),
        [((2, 3),), ((2, 3, 2),)],
        settings=[{"repeats": 2}, {"repeats": 3, "axis": 1}, {"repeats": [2, 0], "axis": 0},
                  {"repeats": [1, 0, 2], "axis": 1}, {"repeats": 0, "axis": -1}]),
    # sorting
    Row("argsort", ops.argsort, by_dim("argsort"), CUBES, distinct,
        [{}, {"axis": 0, "descending": True}, {"axis": 1}], smooth=False),
    Row("sort", values(ops.sort), lambda *a, **s: by_dim("sort")(*a, **s).values,
        [*CUBES, ((),), ((0,),)], distinct, [{}, {"descending": True}, {"axis": 0}]),
    Row("sort, indices", indices(ops.sort), lambda *a, **s: by_dim("sort")(*a, **s).indices,
        [*CUBES, ((),), ((0,),)], distinct, [{}, {"descending": True}, {"axis": 0}], smooth=False),
    Row("topk", values(ops.topk), lambda *a, **s: by_dim("topk")(*a, **s).values,
        [((4, 3, 5),), ((3, 4),)], distinct,
        [{"k": 2}, {"k": 0}, {"k": 3, "axis": 0}, {"k": 3, "axis": 1, "largest": False}]),
    Row("topk, indices", indices(ops.topk), lambda *a, **s: by_dim("topk")(*a, **s).indices,
        [((4, 3, 5),), ((3, 4),)], distinct, [{"k": 3}, {"k": 1, "axis": 0, "largest": False}],
        smooth=False),
    # indexing
    Row("getitem", lambda a: ops.getitem(a, (0, ..., None)),
        lambda torch, a: a[0, ..., None], CUBES),
    Row("take", lambda a, i, axis: ops.take(a, i, axis),
        lambda torch, a, i, axis: torch.index_select(a, axis, i), [((3, 4, 3), (5,))],
        (normal, below(3)), [{"axis": 0}, {"axis": 1}, {"axis": -1}]),
    Row("take, of all", ops.take, "take", [((3, 4), (2, 3)), ((5,), (0,))], (normal, below(5))),
    Row("gather", lambda a, i, axis: ops.gather(a, axis, i),
        lambda torch, a, i, axis: torch.gather(a, axis, i),
        [((3, 3, 3), (3, 3, 3)), ((3, 4, 3), (2, 1, 3))],
        (normal, below(3)), [{"axis": 0}, {"axis": 1}, {"axis": -1}]),
    Row("scatter_add", lambda a, i, src, axis: ops.scatter_add(a, axis, i, src),
        added,
        [((3, 3, 3), (3, 3, 3), (3, 3, 3)), ((3, 4, 3), (2, 1, 3), (3, 2, 3)),
         ((3, 3, 3), (0, 2, 3), (1, 2, 3))],
        (normal, below(3), normal), [{"axis": 0}, {"axis": 1}, {"axis": -1}]),
    Row("scatter_add, of numbers", lambda a, i, src: ops.scatter_add(a, 0, i, src),
        added,
        [((), (), ()), ((4,), (0,), (0,)), ((1,), (5,), (7,))], (normal, below(1), normal)),
    Row("gather, of numbers", lambda a, i: ops.gather(a, 0, i),
        lambda torch, a, i: torch.gather(a, 0, i), [((), ())], (normal, below(1))),
    Row("take_along_axis", ops.take_along_axis,
        lambda torch, a, i, axis: torch.take_along_dim(a, i, axis), [((3, 4), (3, 2))],
        (normal, below(4)), [{"axis": 1}]),
    # products by letters
    Row("dot", ops.dot, "dot", [((3,), (3,)), ((0,), (0,)), ((1,), (1,))]),
    Row("outer", ops.outer, "outer", [((3,), (4,)), ((1,), (2,)), ((0,), (3,))]),
    *(Row(f"einsum, {letters}", lambda *a, letters=letters: ops.einsum(letters, *a),
          lambda torch, *a, letters=letters: torch.einsum(letters, *a), [tuple(shapes)])
      for letters, *shapes in EINSUMS),
    # what training does most
    Row("linear", ops.linear,
        lambda torch, x, w, b=None: torch.nn.functional.linear(x, w.T, b if b is None else b[0]),
        [((5, 3), (3, 4)), ((5, 3), (3, 4), (1, 4)), ((2, 5, 3), (3, 4), (1, 4)),
         ((3,), (3, 4)), ((0, 3), (3, 4), (1, 4)), ((1, 1), (1, 1), (1, 1))]),
    Row("linear, and a bend", ops.linear, bent, [((5, 3), (3, 4), (1, 4)), ((2, 5, 3), (3, 4))],
        settings=[{"activation": name} for name in ("relu", "gelu", "silu", "sigmoid", "tanh")]),
    Row("cross_entropy", ops.cross_entropy, "nn.functional.cross_entropy",
        [((5, 3), (5,)), ((1, 4), (1,)), ((4, 3), (4,))], (normal, below(3))),
    Row("cross_entropy, of what counts", ops.cross_entropy, "nn.functional.cross_entropy",
        [((5, 3), (5,)), ((9, 2), (9,))], (normal, below(2)),
        [{"ignore_index": 0}, {"ignore_index": -100}]),
    Row("surprise", ops.surprise, each_surprise,
        [((5, 3), (5,)), ((2, 3, 4), (2, 4)), ((1, 3, 2, 2), (1, 2, 2)), ((0, 3), (0,))],
        (normal, below(3)), [{}, {"axis": 1}]),
    Row("surprise, of classes that come last", ops.surprise,
        lambda torch, z, labels, axis: each_surprise(torch, z.movedim(-1, 1), labels),
        [((5, 3), (5,)), ((2, 4, 3), (2, 4))], (normal, below(3)), [{"axis": -1}]),
    Row("surprise, of one example", ops.surprise, each_surprise, [((3,), ())],
        (normal, below(3)), [{"axis": 0}]),
    Row("binary_cross_entropy_with_logits", ops.binary_cross_entropy_with_logits, yes_or_no,
        [((), ()), ((3, 4), (3, 4)), ((3, 4), (3, 4), (4,)), ((0, 3), (0, 3), (3,))]),
    Row("binary_cross_entropy", ops.binary_cross_entropy,
        lambda torch, p, t: torch.nn.functional.binary_cross_entropy(p, t, reduction="none"),
        [((), ()), ((3, 4), (3, 4)), ((0, 3), (0, 3))], share),
    Row("huber", ops.huber, huber, ONE, away, [{}, {"delta": 0.1}, {"delta": 9.0}]),
    Row("normalize, a layer", ops.normalize, normalised_by_layer,
        [((4, 2, 3),), ((4, 2, 3), (2, 3), (2, 3))],
        settings=[{"axis": (1, 2), "eps": 1e-5}, {"axis": (-2, -1), "eps": 0.1}]),
    Row("normalize, rows", ops.normalize, normalised_by_layer,
        [((4, 3),), ((4, 3), (3,)), ((4, 3), (3,), (3,)), ((2, 5, 3), (3,), (3,))],
        settings=[{"axis": (-1,), "eps": 1e-5}]),
    Row("normalize, a batch", ops.normalize, normalised_by_batch,
        [((4, 3, 2),), ((4, 3, 2), (3, 1), (3, 1))], settings=[{"axis": (0, 2), "eps": 1e-5}]),
    Row("dropout", ops.dropout, lambda torch, x, keep, p: x * keep / (1 - p),
        [((3, 4), (3, 4)), ((2, 3, 4), (3, 4)), ((0,), (0,))], (normal, mask), [{"p": 0.4}]),
    Row("dropout_mask", ops.dropout_mask, kept, [((2,),)], words,
        [{"shape": (3, 7), "p": 0.4}, {"shape": (0, 2), "p": 0.4}, {"shape": (2,), "p": 1.0}]),
    Row("dropout_by_draw", ops.dropout_by_draw,
        lambda torch, x, draw, p: x * kept(torch, draw, x.shape, p) / (1 - p),
        [((3, 7), (2,)), ((2, 3, 4), (2,))], (normal, words), [{"p": 0.4}]),
    Row("dropout_add_layer_norm", ops.dropout_add_layer_norm, dropped_added_normalised,
        [((3, 7), (3, 7), (7,), (7,), (2,)), ((2, 3, 5), (2, 3, 5), (5,), (5,), (2,))],
        (normal, normal, normal, normal, words), [{"p": 0.25, "eps": 1e-5}]),
]  # fmt: skip

BY_NAME = {"ids": lambda row: row.name, "argvalues": ROWS}
SMOOTH = [row for row in ROWS if row.smooth and "equal" not in row.name]


def test_every_operator_has_a_row():
    known = {getattr(ops, row.name.partition(",")[0]) for row in ROWS}
    public = {name: f for name, f in vars(ops).items() if name[0] != "_" and is_operator(f)}
    assert len(public) > 100 and not {name for name, f in public.items() if f not in known}


def is_operator(f):
    "Whether `f` is a function of the pages on operators, with a rule of its own or without."
    others = (ops.to, ops.allclose)  # which have tests of their own
    return str(getattr(f, "__module__", "")).startswith("minima.operators.") and f not in others


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", **BY_NAME)
def test_value_dtype_and_gradients_as_in_torch(row, dtype, torch):
    for (shapes, settings), layout in itertools.product(row.cases(), LAYOUTS):
        arrays = numbers(row.make, shapes, layout)
        ours, theirs = row.ours_with(settings), row.theirs_with(torch, settings)
        vs_torch(ours, theirs, arrays, dtype=dtype, verbose=False)


@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
def test_gradients_of_first_and_second_order_as_differences_measure(row):
    for shapes, settings in row.cases():
        arrays = numbers(row.make, shapes, seed=1)
        if any(a.dtype.kind == "f" for a in arrays) and settings != {"dtype": "int64"}:
            assert gradcheck(row.ours_with(settings), arrays, order=2, directions=2)


@pytest.mark.parametrize("row", **BY_NAME)
def test_a_rule_writes_into_nothing_that_it_is_given(row):
    for shapes, settings in row.cases():
        leaves = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in numbers(row.make, shapes)]
        y = row.ours_with(settings)(*leaves)
        if y.requires_grad:
            (cotangent,) = numbers(normal, [y.shape])
            wanted = [t for t in leaves if t.requires_grad]
            first = grad(y, wanted, cotangent, retain_graph=True)
            again = grad(y, wanted, cotangent)  # what the pullbacks keep is unharmed, too
            for a, b in zip(first, again):
                np.testing.assert_array_equal(a.numpy(), b.numpy())


# ---- written into, between the way forward and the walk back ----

TOO_CAREFUL = {  # what keeps an array that the gradient only now and then depends on
    "clip": "which numbers are inside is all that counts",
    "power": "an exponent counts where the base is 0",
    "prod": "the product of the others does not depend on an only element",
}


def filled(arrays, i, settings, row):
    "The gradients before and after array `i` became nan, and whether the walk back refuses that."
    leaves = [Tensor(a.copy(), requires_grad=a.dtype.kind == "f") for a in arrays]
    y = row.ours_with(settings)(*leaves)
    if not y.requires_grad:
        return None
    (cotangent,) = numbers(normal, [y.shape])
    wanted = [t for t in leaves if t.requires_grad]
    walk = lambda: [g.numpy() for g in grad(y, wanted, cotangent, retain_graph=True)]
    before = walk()
    leaves[i].detach()[...] = np.nan
    try:
        walk()
    except RuntimeError as error:
        assert "inplace operation" in str(error)
        refused = True
    else:
        refused = False
    _written.clear()  # now nobody knows
    return before, walk(), refused


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("row", **BY_NAME)
def test_overwriting_an_argument_is_refused_exactly_if_a_gradient_would_change(row):
    name = row.name.partition(",")[0]
    for shapes, settings in row.cases():
        arrays = [np.array(a) for a in numbers(row.make, shapes)]
        floating = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
        for i in floating if all(a.size for a in arrays) else ():
            found = filled(arrays, i, settings, row)
            if found is not None and found[0][0].size:
                before, after, refused = found
                changed = any((a != b).any() for a, b in zip(before, after))
                assert refused or not changed, f"a wrong gradient: {shapes}, {settings}, array {i}"
                if name not in TOO_CAREFUL:
                    assert changed or not refused, f"refused for nothing: {shapes}, array {i}"


# ---- indexing ----

PICK = np.array([[0, 2], [1, 0]])
KEYS = {
    "an integer": 1,
    "a negative integer": -1,
    "a slice": slice(1, None),
    "a step": slice(None, None, 2),
    "an empty slice": slice(2, 2),
    "a tuple": (1, slice(0, 2)),
    "all": (1, 2, 3),
    "nothing": (),
    "an ellipsis": (..., 0),
    "an ellipsis between": (0, ..., 1),
    "a new axis": (None, slice(None), 0),
    "a new last axis": (..., None),
    "a list": [0, 2],
    "a list with repetitions": [0, 0, 2, 0],
    "an empty list": [],
    "an array": PICK,
    "an array on the second axis": (slice(None), PICK),
    "two arrays": (np.array([0, 2, 2]), np.array([1, 0, 0])),
    "two arrays that broadcast": (np.array([[0], [2]]), np.array([1, 1, 0])),
    "arrays apart": (np.array([0, 2]), slice(None), np.array([1, 1])),
    "an array and an integer": (1, np.array([0, 2, 0])),
    "an array and a new axis": (None, np.array([0, 1])),
    "negative indices": np.array([-1, 0, -1]),
    "no index at all": np.array([], dtype="int64"),
    "a mask": np.array([True, False, True]),
    "a whole mask": np.arange(36).reshape(3, 3, 4) % 5 == 0,
    "a mask of nothing": np.zeros((3, 3), dtype=bool),
    "a mask and a slice": (slice(None), np.array([True, False, True]), slice(1, 3)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_getitem_as_in_torch(key, dtype, torch):
    (a,) = numbers(normal, [(3, 3, 4)])
    as_theirs = [torch.tensor(k) if isinstance(k, np.ndarray) else k for k in _tuple(key)]
    theirs = key if isinstance(key, list) else tuple(as_theirs)
    vs_torch(lambda x: x[key], lambda x: x[theirs], [a], dtype=dtype, verbose=False)


def _tuple(key):
    return key if isinstance(key, tuple) else (key,)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_getitem_by_differences(key):
    (a,) = numbers(normal, [(3, 3, 4)])
    assert gradcheck(lambda x: x[key], [a], order=2)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_an_index_may_be_a_tensor(key):
    (a,) = numbers(normal, [(3, 3, 4)])
    as_tensors = tuple(Tensor(k) if isinstance(k, np.ndarray) else k for k in _tuple(key))
    x = Tensor(a, requires_grad=True)
    for k in (as_tensors, as_tensors[0] if len(as_tensors) == 1 else as_tensors):
        np.testing.assert_array_equal(x[k].data.numpy(), a[key])


@pytest.mark.parametrize("key", [slice(None, None, -1), (slice(2, None, -2), slice(3, 0, -1))])
def test_getitem_with_a_negative_step(key):
    (a,) = numbers(normal, [(3, 4)])
    x = Tensor(a, requires_grad=True)
    np.testing.assert_array_equal(x[key].data.numpy(), a[key])
    assert gradcheck(lambda x: x[key], [a], order=2)


def test_an_index_that_repeats_collects_every_gradient():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    x[[0, 0, 2]].backward([1.0, 10.0, 100.0])
    assert x.grad.tolist() == [11.0, 0.0, 100.0]


@pytest.mark.parametrize("key", [3, (0, 4), np.array([5]), (0, 0, 0), np.array([True])])
def test_an_index_out_of_range_is_an_IndexError_that_names_the_shape(key):
    with pytest.raises(IndexError, match=r"getitem\(\(3, 4\)"):
        Tensor(np.zeros((3, 4)))[key]


def test_a_single_number_can_be_picked_from_a_single_number():
    x = Tensor(2.0, requires_grad=True)
    (x[()] * 3.0).backward()
    assert x.grad.tolist() == 3.0 == float(grad(x[()] * x, x)[0]) - 1


def test_iterating_and_unpacking_keep_gradients():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    first, second = x
    (first * 2 + second).sum().backward()
    assert x.grad.tolist() == [[2.0, 2.0], [1.0, 1.0]]


def test_writing_into_a_tensor():
    x = Tensor([1.0, 2.0, 3.0])
    x[0], x[Tensor([1, 2])] = 7.0, Tensor([8.0, 9.0])
    assert x.tolist() == [7.0, 8.0, 9.0]
    recorded = Tensor([1.0], requires_grad=True)
    for a, value in [(recorded, 2.0), (x, recorded[0])]:
        with pytest.raises(RuntimeError, match="would lose gradients"):
            a[0] = value


# ---- einsum ----


@st.composite
def products_by_letters(draw):
    "Letters for one to three arrays, with or without a result, and the shapes of the arrays."
    sizes = dict(zip("abcd", draw(st.tuples(*[st.integers(0, 3)] * 4))))
    groups = draw(st.lists(st.text("abcd", max_size=4), min_size=1, max_size=3))
    left = ",".join(groups)
    if draw(st.booleans()):
        used = sorted({*left} - {","})
        left += "->" + "".join(draw(st.permutations(used))[: draw(st.integers(0, 4))])
    shapes = [tuple(sizes[c] for c in g) for g in groups]
    stretched = [draw(st.booleans()) and len({*g}) == len(g) for g in groups]
    return left, [(1,) * len(s) if one else s for s, one in zip(shapes, stretched)]


@given(products_by_letters())
def test_einsum_computes_as_numpy_whatever_the_letters(case):
    letters, shapes = case
    arrays = numbers(normal, shapes)
    y = ops.einsum(letters, *arrays)
    np.testing.assert_allclose(y.numpy(), np.einsum(letters, *arrays), rtol=1e-12, atol=1e-12)


def test_einsum_takes_numpys_other_spelling():
    a, b = numbers(normal, [(2, 3, 4), (4, 5)])
    for args in [
        (a, [0, 1, 2], b, [2, 3], [3, 1, 0]), (a, [5, 30, 2], b, [2, 27]), (a, [..., 1], b, [1, 0]),
        (a, [..., 0], [0, ...]), (a, [0, 1, 2], []),
    ]:  # fmt: skip
        np.testing.assert_allclose(ops.einsum(*args).numpy(), np.einsum(*args), rtol=1e-12)


@pytest.mark.parametrize(
    "letters, shapes, message",
    [
        ("ij,jk", [(2, 3)], "speaks of 2 arrays, not 1"),
        ("ij", [(2, 3), (2,)], "speaks of 1 arrays, not 2"),
        ("ij,jk", [(2, 3), (4, 5)], "'j' is 3 and 4"),
        ("ij", [(2,)], "does not fit an array of 1 axes"),
        ("ij", [(2, 3, 4)], "does not fit an array of 3 axes"),
        ("i...j", [(2,)], "does not fit an array of 1 axes"),
        ("ii", [(1, 2)], "no diagonal 'i'"),
        ("ij->ik", [(2, 3)], "must be in an array"),
        ("ij->ii", [(2, 3)], "must be in an array"),
        ("i1", [(2, 3)], "letters, commas"),
        ("ij->j->i", [(2, 3)], "letters, commas"),
        ("i....", [(2, 3)], "letters, commas"),
    ],
)
def test_einsum_says_what_makes_no_sense(letters, shapes, message):
    with pytest.raises(ShapeError, match=message):
        ops.einsum(letters, *numbers(normal, shapes))


# ---- far out ----

INF, NAN = np.inf, np.nan
FAR = [-INF, -1e4, -800.0, -100.0, -1.0, -0.0, 0.0, 1.0, 100.0, 800.0, 1e4, INF, NAN]
PECULIAR = {  # where PyTorch itself does not agree with what it does elsewhere
    *(("sign", NAN, dtype) for dtype in ("float32", "float64")),  # its sign of nan is 0
    *(("power, by 0.5", x, d) for x in (-INF, -0.0) for d in ("float32", "float64")),  # a root
    ("gelu", INF, "float32"),  # nan, but inf in float64
}
LOGITS = [
    [1e4, 0.0, -1e4], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [-INF, 0.0, 1.0], [-INF, -INF, 2.0],
    [-INF, -INF, -INF], [INF, 0.0, 1.0], [INF, INF, 0.0], [INF, -INF, 0.0], [NAN, 0.0, 1.0],
]  # fmt: skip
ROWWISE = {"summation", "mean", "max", "min", "logsumexp", "softmax", "log_softmax", "var"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.shapes is ONE and row.name not in ("transpose, of few", "astype")],
    ids=lambda row: row.name,
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_far_out_values_and_gradients_are_those_of_torch(row, dtype, torch):
    for settings, far in itertools.product(row.settings, FAR):
        ours, theirs = row.ours_with(settings), row.theirs_with(torch, settings)
        if (row.name, far, dtype) not in PECULIAR:
            vs_torch(ours, theirs, [np.array([far])], dtype=dtype, verbose=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name in ROWWISE], ids=lambda row: row.name
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_far_out_reductions_are_those_of_torch(row, keepdims, dtype, torch):
    settings = {"axis": -1} | ({} if "softmax" in row.name else {"keepdims": keepdims})
    ours, theirs = row.ours_with(settings), row.theirs_with(torch, settings)
    for logits in LOGITS:  # one by one, so that a nan of one hides nothing in the others
        vs_torch(ours, theirs, [np.array([logits])], dtype=dtype, verbose=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "maximum", "minimum"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_far_out_pairs_are_those_of_torch(name, dtype, torch):
    a, b = (x.reshape(-1) for x in np.meshgrid(FAR, FAR))
    vs_torch(getattr(ops, name), getattr(torch, name), [a, b], dtype=dtype, verbose=False)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_powers_at_zero_and_far_out_are_those_of_torch(dtype, torch):
    bases = [-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e4, INF]
    exponents = [-INF, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, INF]
    for base, exponent in itertools.product(bases, exponents):
        a, b = np.array([base]), np.array([exponent])
        vs_torch(ops.power, torch.pow, [a, b], dtype=dtype, verbose=False)
    for base, exponent in itertools.product(bases, [-2, -1, 0, 1, 2, 3, 1.5]):
        power = lambda x, e=exponent: x**e
        vs_torch(power, power, [np.array([base])], dtype=dtype, verbose=False)


def test_no_warning_and_no_nan_where_the_answer_is_ordinary():
    with np.errstate(all="raise", under="ignore"):
        bends = ops.relu, ops.leaky_relu, ops.softplus, ops.silu, ops.gelu, ops.erf
        for f in (*bends, ops.sigmoid, ops.tanh, ops.softmax, ops.log_softmax):
            x = Tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
            y = f(x)
            y.backward(np.ones(5))
            assert np.isfinite(y.data.numpy()).all() and np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_cross_entropy_far_out(dtype, torch):
    for logits, label in itertools.product(LOGITS, range(3)):
        arguments = [np.array([logits, [0.0, 1.0, 2.0]]), np.array([label, 1])]
        theirs = torch.nn.functional.cross_entropy
        vs_torch(ops.cross_entropy, theirs, arguments, dtype=dtype, verbose=False)


# ---- ties, kinks, and holes ----


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_a_tie_between_two_is_shared_as_in_torch(name, torch):
    a = np.array([1.0, 2.0, 3.0, 0.0, -0.0])
    b = np.array([1.0, 3.0, 2.0, -0.0, 0.0])
    vs_torch(getattr(ops, name), getattr(torch, name), [a, b], verbose=False)
    by_number = lambda x: getattr(torch, name)(x, torch.tensor(2.0))
    vs_torch(lambda x: getattr(ops, name)(x, 2.0), by_number, [a], verbose=False)


@pytest.mark.parametrize("ours, theirs", [(ops.max, "amax"), (ops.min, "amin")])
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_a_tie_among_many_is_shared_as_in_torch(ours, theirs, axis, torch):
    a = np.array([[2.0, 2.0, 1.0], [0.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    vs_torch(lambda x: ours(x, axis=axis), lambda x: reduction(theirs)(torch, x, axis=axis), [a])


@pytest.mark.parametrize("ours, theirs", [(ops.abs, "abs"), (ops.relu, "relu"), (ops.sign, "sign")])
def test_at_a_kink_the_gradient_is_that_of_torch(ours, theirs, torch):
    vs_torch(ours, getattr(torch, theirs), [np.array([0.0, -0.0, 1.0])], verbose=False)


@pytest.mark.parametrize("name", ["leaky_relu", "softplus", "silu", "gelu"])
def test_at_a_kink_a_bend_is_as_in_torch(name, torch):
    a = np.array([0.0, -0.0, 20.0, np.nextafter(20.0, 30.0), -20.0])
    vs_torch(getattr(ops, name), getattr(torch.nn.functional, name), [a], verbose=False)


@pytest.mark.parametrize("name", ["floor", "round"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_half_is_rounded_to_the_even_side_and_stairs_are_flat(name, dtype, torch):
    a = np.array([-2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 3.0, 0.49999997, 1e30])
    vs_torch(getattr(ops, name), getattr(torch, name), [a], dtype=dtype, verbose=False)
    assert round(Tensor(2.5)).item() == 2 and round(Tensor(0.126), 2).item() == pytest.approx(0.13)
    assert ops.floor([3]).dtype == ops.round([3]).dtype == "int64"


@pytest.mark.parametrize("name", ["expm1", "log1p", "erf"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_next_to_zero_no_digits_are_lost(name, dtype, torch):
    a = 10.0 ** np.arange(-12, 0.1, 0.25) * [[1], [-0.999]]
    x = Tensor(a, dtype=dtype)
    theirs = getattr(torch, name)(torch.tensor(x.numpy())).numpy()
    ours = getattr(ops, name)(x).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=6 * np.finfo(dtype).eps)


def test_gelu_knows_two_ways():
    with pytest.raises(ValueError, match="not 'sinh'"):
        ops.gelu(Tensor([1.0]), approximate="sinh")


@pytest.mark.parametrize("limits", [(0.0, 1.0), (None, 0.5), (0.5, None), (1.0, 1.0)])
def test_at_a_limit_clip_passes_the_gradient_as_torch_does(limits, torch):
    a = np.array([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
    vs_torch(lambda x: ops.clip(x, *limits), lambda x: torch.clip(x, *limits), [a], verbose=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*degrees of freedom")
@pytest.mark.parametrize("shape, axis, correction", [((1,), 0, 1), ((3, 1), 1, 1), ((2,), 0, 2)])
def test_the_variance_of_too_few_is_that_of_torch(shape, axis, correction, torch):
    (a,) = numbers(normal, [shape])
    settings = {"axis": axis, "correction": correction}
    theirs = lambda x: reduction("var")(torch, x, **settings)
    vs_torch(lambda x: ops.var(x, **settings), theirs, [a], verbose=False)


@pytest.mark.parametrize("ord", [0, 0.5, 1, 1.5, 2, 3, np.inf, -np.inf, -1])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_norms_of_zeros_ties_and_infinities_are_those_of_torch(ord, axis, torch):
    rows = [[2.0, -2.0, 2.0], [0.0, 1.0, -2.0], [0.0, 0.0, 0.0], [1.0, INF, 2.0], [NAN, 0.0, 1.0]]
    alike = {-1: 1, 2: 5, 3: 5, 1: 4, np.inf: 4}  # how many of the rows have one answer only
    for row in rows[: alike.get(ord, 3)]:
        ours = lambda x: ops.norm(x, ord, axis)
        theirs = lambda x: torch.linalg.vector_norm(x, ord, dim=axis)
        vs_torch(ours, theirs, [np.array([row])], verbose=False)


@pytest.mark.parametrize("row", [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0 + 1e-12], [NAN, 1.0]])
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:.*degrees of freedom")
def test_the_deviation_of_constants_has_the_gradient_of_torch(row, torch):
    for a in (np.array([row]), np.array([row[:1]])):
        vs_torch(lambda x: ops.std(x, 1), lambda x: torch.std(x, 1), [a], rtol=1e-3, verbose=False)


@pytest.mark.parametrize("row", [[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.0] * 3, [-0.0, 2.0, NAN]])
def test_a_product_has_the_gradient_of_torch_whatever_is_zero(row, torch):
    vs_torch(ops.prod, torch.prod, [np.array(row)], verbose=False)
    vs_torch(lambda x: ops.prod(x, 0), lambda x: torch.prod(x, 0), [np.array(row)], verbose=False)


def test_the_gradient_of_a_product_overflows_only_where_it_must():
    x = Tensor(np.array([1e200, 1e200, 1e-300]), requires_grad=True)
    with np.errstate(over="ignore"):
        (g,) = grad(x.prod(), x)
    assert g.tolist() == pytest.approx([1e-100, 1e-100, INF])  # PyTorch says inf to all three


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("descending", [False, True])
def test_equal_elements_keep_their_order_when_sorted(dtype, descending, torch):
    a = np.random.default_rng(0).integers(0, 3, size=(4, 50)).astype(dtype)
    found = torch.sort(torch.tensor(a), dim=1, descending=descending, stable=True)
    ours = ops.sort(a, 1, descending)
    np.testing.assert_array_equal(ours.values.numpy(), found.values.numpy())
    np.testing.assert_array_equal(ours.indices.numpy(), found.indices.numpy())
    assert ours.values.dtype == dtype and ours.indices.dtype == "int64"
    values, indices = Tensor(a).topk(7, 1, descending)
    sign = -1 if descending else 1
    first = np.argsort(sign * a.astype(int), axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(indices.numpy(), first)


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_puts_nan_where_torch_does(descending, torch):
    a = np.array([1.0, NAN, -INF, 0.0, INF, NAN, -0.0])
    for f in (torch.sort, torch.argsort):
        theirs = f(torch.tensor(a), descending=descending, stable=True)
        ours = getattr(ops, f.__name__)(a, descending=descending)
        for p, q in zip(ours, theirs) if f is torch.sort else [(ours, theirs)]:
            np.testing.assert_array_equal(p.numpy(), q.numpy())
    largest = ops.topk(a, 3, largest=descending).values.numpy()
    np.testing.assert_array_equal(largest, torch.topk(torch.tensor(a), 3, largest=descending)[0])


def test_where_lets_no_infinite_gradient_through_the_other_side():
    x = Tensor([0.0, 4.0], requires_grad=True)
    ops.where(np.array([True, False]), x, 0.0).backward([1.0, np.inf])
    assert x.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("axis", [1, -2, (0, 1)])
@pytest.mark.parametrize("name", ["mean", "max", "prod", "norm", "softmax", "cumsum", "sort"])
def test_a_single_number_has_no_further_axis(name, axis):
    with pytest.raises((IndexError, TypeError)):
        getattr(ops, name)(3.0, axis=axis)


# ---- dtypes ----


@pytest.fixture
def default_float64():
    before = get_default_dtype()
    set_default_dtype("float64")
    yield
    set_default_dtype(before)


SCALARS = [2, 2.5, True, np.float64(2.5), np.float32(2.5), np.int64(2), np.bool_(True)]
BINARY = ["+", "-", "*", "/", "**"]


@pytest.mark.parametrize("symbol", BINARY)
@pytest.mark.parametrize("scalar", SCALARS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_scalar_on_either_side_never_changes_the_dtype(dtype, scalar, symbol):
    a = np.array([1.5, 2.0, 0.5], dtype=dtype)
    x = Tensor(a, requires_grad=True)
    plain = scalar.item() if isinstance(scalar, np.generic) else scalar
    for text in (f"x {symbol} s", f"s {symbol} x"):
        y = eval(text, {"x": x, "s": scalar})
        expected = eval(text, {"x": a, "s": plain})
        assert type(y) is Tensor and y.dtype == dtype and y.requires_grad
        np.testing.assert_allclose(y.data.numpy(), expected, rtol=4 * np.finfo(dtype).eps)
        y.sum().backward()
        assert x.grad.dtype == dtype


OTHERS = {
    "ndarray": lambda a: a,
    "nested list": lambda a: a.tolist(),
    "Tensor": Tensor,
    "Tensor with gradient": lambda a: Tensor(a, requires_grad=True),
}


@pytest.mark.parametrize("symbol", ["&", "|", "^"])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("make", [mask, below(8)], ids=["masks", "integers"])
def test_bits_with_an_array_on_either_side_compute_as_numpy(make, other, symbol):
    a, b = numbers(make, [(3, 3), (3, 3)])
    o = Tensor(b) if other is OTHERS["Tensor with gradient"] else other(b)
    for text in (f"x {symbol} o", f"o {symbol} x"):
        y = eval(text, {"x": Tensor(a), "o": o})
        np.testing.assert_array_equal(y.numpy(), eval(f"a {symbol} b"))
        assert type(y) is Tensor and y.dtype == a.dtype
    with pytest.raises(TypeError, match="bitwise"):
        eval(f"x {symbol} o", {"x": Tensor([1.0]), "o": Tensor([1.0])})


@pytest.mark.parametrize("symbol", [*BINARY, "@", "<", "<=", ">", ">=", "==", "!="])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_operators_with_an_array_on_either_side_compute_as_numpy(other, symbol):
    a, b = numbers(positive, [(3, 3), (3, 3)])
    x, o = Tensor(a, requires_grad=True), other(b)
    for text, expected in ((f"x {symbol} o", (a, b)), (f"o {symbol} x", (b, a))):
        y = eval(text, {"x": x, "o": o})
        expected = eval(f"a {symbol} b", dict(zip("ab", expected)))
        assert type(y) is Tensor and y.dtype == expected.dtype
        np.testing.assert_allclose(y.data.numpy(), expected, rtol=1e-12)
        assert y.requires_grad == (y.dtype != bool)


def test_one_minus_x_is_not_x_minus_one():  # and so for every operation that has two sides
    x = Tensor([3.0], requires_grad=True)
    for y, value, slope in [(1 - x, -2.0, -1.0), (6 / x, 2.0, -2 / 3), (2**x, 8.0, 8 * np.log(2))]:
        x.grad = None
        y.backward([1.0])
        assert y.tolist() == pytest.approx([value]) and x.grad.tolist() == pytest.approx([slope])
    m, v = Tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 0.0], [0.0, 0.0]], dtype="float32")
    assert (v @ m).tolist() == [[1.0, 2.0], [0.0, 0.0]] != (m @ v).tolist()


def test_ints_never_widen_a_float():
    x = Tensor(np.ones(3, dtype="float32"), requires_grad=True)
    i = np.array([1, 2, 3])
    results = [x * i, i * x, x + Tensor(i), Tensor(i) / x, x**i, i**x, i - x]
    results += [ops.where(i > 1, x, i), ops.maximum(x, i), ops.minimum(i, x)]
    results += [x.sum() / len(x), ops.matmul(x, i), ops.concat([x, i.astype("float32")])]
    for y in results:
        assert y.dtype == "float32"
        y.sum().backward()
    assert x.grad.dtype == "float32"


def test_floats_of_two_widths_give_the_wider_and_each_its_own_gradient():
    x = Tensor(np.ones(3, dtype="float32"), requires_grad=True)
    y = Tensor(np.ones(3), requires_grad=True)
    z = x * y
    assert z.dtype == "float64"
    z.sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == ("float32", "float64")


def test_lists_of_floats_are_exact_beside_float64():
    x = Tensor(np.zeros(2))
    assert (x + [0.1, 0.2]).tolist() == [0.1, 0.2] == ([0.1, 0.2] + x).tolist()


INTEGERS = {
    "divide": (lambda i: i / i, "default"),
    "divide by a number": (lambda i: i / 2, "default"),
    "divide a number": (lambda i: 2 / i, "default"),
    "mean": (lambda i: i.mean(axis=0), "default"),
    "var": (lambda i: i.var(), "default"),
    "exp": (lambda i: i.exp(), "default"),
    "sqrt": (lambda i: i.sqrt(), "default"),
    "sigmoid": (lambda i: i.sigmoid(), "default"),
    "times a float": (lambda i: i * 0.5, "default"),
    "to a float power": (lambda i: i**0.5, "default"),
    "softmax": (lambda i: i.softmax(), "default"),
    "logsumexp": (lambda i: i.logsumexp(), "default"),
    "erf": (lambda i: i.erf(), "default"),
    "sin": (lambda i: i.sin(), "default"),
    "softplus": (lambda i: ops.softplus(i), "default"),
    "silu": (lambda i: ops.silu(i), "default"),
    "gelu": (lambda i: ops.gelu(i), "default"),
    "floor": (lambda i: i.floor(), "int64"),
    "std": (lambda i: i.std(), "default"),
    "norm": (lambda i: i.norm(), "default"),
    "norm by sums": (lambda i: i.norm(1), "default"),
    "norm by counting": (lambda i: i.norm(0), "default"),
    "norm by the largest": (lambda i: i.norm(np.inf), "default"),
    "prod": (lambda i: i.prod(), "int64"),
    "cumsum": (lambda i: i.cumsum(0), "int64"),
    "cumsum of booleans": (lambda i: (i > 1).cumsum(0), "int64"),
    "sort": (lambda i: i.sort().values, "int64"),
    "argsort": (lambda i: i.argsort(), "int64"),
    "tril": (lambda i: i.reshape(3, 1).tril(), "int64"),
    "scatter_add": (lambda i: i.scatter_add(0, i - 1, i), "int64"),
    "pad": (lambda i: ops.pad(i, 1), "int64"),
    "invert": (lambda i: ~i, "int64"),
    "add": (lambda i: i + 1, "int64"),
    "to an integer power": (lambda i: i**2, "int64"),
    "sum": (lambda i: i.sum(), "int64"),
    "sum of booleans": (lambda i: (i > 1).sum(), "int64"),
    "max": (lambda i: i.max(), "int64"),
    "argmax": (lambda i: i.argmax(), "int64"),
    "relu": (lambda i: i.relu(), "int64"),
    "negate": (lambda i: -i, "int64"),
    "matmul": (lambda i: i @ i, "int64"),
}


@pytest.mark.parametrize("f, dtype", INTEGERS.values(), ids=INTEGERS)
def test_integers_give_integers_or_the_default_float(f, dtype):
    assert f(Tensor([1, 2, 3])).dtype == ("float32" if dtype == "default" else dtype)


@pytest.mark.parametrize("f, dtype", INTEGERS.values(), ids=INTEGERS)
def test_integers_give_integers_or_the_default_float_when_it_is_another(f, dtype, default_float64):
    assert f(Tensor([1, 2, 3])).dtype == ("float64" if dtype == "default" else dtype)


def test_the_default_dtype_is_that_of_python_floats_only(default_float64):
    assert Tensor([1.0]).dtype == "float64"
    assert Tensor(np.ones(1, dtype="float32")).dtype == "float32"
    assert (Tensor(np.ones(1, dtype="float32")) * 2.0).dtype == "float32"


def test_an_integer_to_a_negative_power_says_what_is_wrong():
    with pytest.raises(RuntimeError, match="power"):
        Tensor([1, 2]) ** -1


# ---- the methods of Tensor ----

METHODS = {
    "sum(axes)": (lambda x: x.sum(axes=(1,)), lambda a: a.sum(1)),
    "sum(axis)": (lambda x: x.sum(axis=1, keepdims=True), lambda a: a.sum(1, keepdims=True)),
    "sum(by position)": (lambda x: x.sum(0, True), lambda a: a.sum(0, keepdims=True)),
    "sum(axis 0)": (lambda x: x.sum(axes=0), lambda a: a.sum(0)),
    "sum(list)": (lambda x: x.sum(axes=[0, 1]), lambda a: a.sum((0, 1))),
    "mean": (lambda x: x.mean(1), lambda a: a.mean(1)),
    "var": (lambda x: x.var(axis=1), lambda a: a.var(1, ddof=1)),
    "max": (lambda x: x.max(-1), lambda a: a.max(-1)),
    "min": (lambda x: x.min(axes=(0, 2)), lambda a: a.min((0, 2))),
    "argmax": (lambda x: x.argmax(1), lambda a: a.argmax(1)),
    "argmin": (lambda x: x.argmin(), lambda a: a.argmin()),
    "reshape(tuple)": (lambda x: x.reshape((6, 4)), lambda a: a.reshape(6, 4)),
    "reshape(spread)": (lambda x: x.reshape(-1, 4), lambda a: a.reshape(-1, 4)),
    "reshape(one)": (lambda x: x.reshape(-1), lambda a: a.reshape(-1)),
    "reshape(list)": (lambda x: x.reshape([4, 6]), lambda a: a.reshape(4, 6)),
    "reshape(shape=)": (lambda x: x.reshape(shape=(24,)), lambda a: a.reshape(24)),
    "broadcast_to": (lambda x: x.broadcast_to((5, 2, 3, 4)), lambda a: a + np.zeros((5, 1, 1, 1))),
    "transpose": (lambda x: x.transpose(), lambda a: a.T),
    "transpose(tuple)": (lambda x: x.transpose((0, 2, 1)), lambda a: a.transpose(0, 2, 1)),
    "transpose(spread)": (lambda x: x.transpose(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
    "transpose(two)": (lambda x: x.transpose(-1, -2), lambda a: a.swapaxes(-1, -2)),
    "T": (lambda x: x.T, lambda a: a.T),
    "swapaxes": (lambda x: x.swapaxes(0, 1), lambda a: a.swapaxes(0, 1)),
    "squeeze": (lambda x: x[:1].squeeze(0), lambda a: a[0]),
    "expand_dims": (lambda x: x.expand_dims((0, -1)), lambda a: a[None, ..., None]),
    "take": (lambda x: x.take([0, 2], 1), lambda a: a.take([0, 2], 1)),
    "gather": (lambda x: x.gather(2, [[[0]]]), lambda a: a[:1, :1, :1]),
    "astype": (lambda x: x.astype("float32"), lambda a: a.astype("float32")),
    "to": (lambda x: x.to("float32"), lambda a: a.astype("float32")),
    "clip": (lambda x: x.clip(-0.5, 0.5), lambda a: a.clip(-0.5, 0.5)),
    "maximum": (lambda x: x.maximum(0.5), lambda a: np.maximum(a, 0.5)),
    "abs": (lambda x: abs(x), np.abs),
    "neg": (lambda x: -x, np.negative),
    "tanh": (lambda x: x.tanh(), np.tanh),
    "softmax": (lambda x: x.softmax(0), lambda a: np.exp(a) / np.exp(a).sum(0)),
    "sin": (lambda x: x.sin(), np.sin),
    "round": (lambda x: round(x, 1), lambda a: np.round(a, 1)),
    "std": (lambda x: x.std((0, 1)), lambda a: a.std((0, 1), ddof=1)),
    "prod": (lambda x: x.prod(1), lambda a: a.prod(1)),
    "cumsum": (lambda x: x.cumsum(1), lambda a: a.cumsum(1)),
    "norm": (lambda x: x.norm(3, 1), lambda a: (np.abs(a) ** 3).sum(1) ** (1 / 3)),
    "any": (lambda x: (x > 1).any(0), lambda a: (a > 1).any(0)),
    "all": (lambda x: (x > -1).all(), lambda a: (a > -1).all()),
    "logic": (lambda x: (x > 0).logical_and(x < 1), lambda a: (a > 0) & (a < 1)),
    "flatten": (lambda x: x.flatten(1), lambda a: a.reshape(2, 12)),
    "unsqueeze": (lambda x: x.unsqueeze(1), lambda a: a[:, None]),
    "permute(spread)": (lambda x: x.permute(2, 0, 1), lambda a: a.transpose(2, 0, 1)),
    "permute(tuple)": (lambda x: x.permute((0, 2, 1)), lambda a: a.transpose(0, 2, 1)),
    "flip(spread)": (lambda x: x.flip(0, 2), lambda a: a[::-1, :, ::-1]),
    "flip(one)": (lambda x: x.flip(1), lambda a: a[:, ::-1]),
    "roll": (lambda x: x.roll(1, 2), lambda a: np.roll(a, 1, 2)),
    "split": (lambda x: x.split(2, 2)[1], lambda a: a[..., 2:]),
    "chunk": (lambda x: x.chunk(2)[0], lambda a: a[:1]),
    "tile(spread)": (lambda x: x.tile(2, 1), lambda a: np.tile(a, (2, 1))),
    "repeat(spread)": (lambda x: x.repeat(2, 1, 1), lambda a: np.tile(a, (2, 1, 1))),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), lambda a: a.repeat(2, 1)),
    "tril": (lambda x: x.tril(1), lambda a: np.tril(a, 1)),
    "triu": (lambda x: x.triu(), np.triu),
    "sort": (lambda x: x.sort(0).values, lambda a: np.sort(a, 0)),
    "argsort": (lambda x: x.argsort(0, True), lambda a: np.argsort(-a, 0)),
    "topk": (lambda x: x.topk(1)[0], lambda a: a.max(-1, keepdims=True)),
    "dot": (lambda x: x[0, 0].dot(x[1, 2]), lambda a: a[0, 0] @ a[1, 2]),
    "outer": (lambda x: x[0, 0].outer(x[:, 0, 0]), lambda a: np.outer(a[0, 0], a[:, 0, 0])),
    "scatter_add": (lambda x: x.scatter_add(0, [[[1]]], [[[0.0]]]), lambda a: a),
    "matmul": (lambda x: x.matmul(x.swapaxes(1, 2)), lambda a: a @ a.swapaxes(1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("ours, numpys", METHODS.values(), ids=METHODS)
def test_methods_compute_as_numpy_and_record(ours, numpys):
    (a,) = numbers(normal, [(2, 3, 4)])
    y, expected = ours(Tensor(a, requires_grad=True)), numpys(a)
    assert type(y) is Tensor and y.shape == expected.shape and y.dtype == expected.dtype
    np.testing.assert_allclose(y.data.numpy(), expected, rtol=1e-6)
    assert y.requires_grad == (y.dtype.kind == "f")


def test_operators_take_axes_by_position_by_name_and_by_its_other_name():
    a = Tensor(np.arange(6.0).reshape(2, 3))
    by_name = ops.summation(a, axis=1), ops.summation(a, axes=1), ops.summation(a, axes=(1,))
    for y in (*by_name, ops.summation(a, 1), ops.sum(a, [1])):
        assert y.tolist() == [3.0, 12.0]
    assert ops.summation(a, axes=0).tolist() == [3.0, 5.0, 7.0]  # 0 is an axis, not "none"
    assert ops.logsumexp(a, axes=(1,)).shape == (2,)
    assert ops.reshape(a, (3, 2)).shape == ops.reshape(a, shape=(3, 2)).shape == (3, 2)
    assert ops.broadcast_to(a, shape=(4, 2, 3)).shape == (4, 2, 3)
    assert ops.concat([a, a], 1).shape == ops.concat((a, a), axis=1).shape == (2, 6)
    assert ops.concat(a, a).shape == (4, 3)


def test_operators_take_arrays_lists_and_numbers_where_they_take_tensors():
    assert ops.exp([0.0]).tolist() == [1.0] == ops.exp(np.zeros(1)).tolist()
    assert ops.add(1, 2).tolist() == 3 and ops.multiply([1.0, 2.0], 3).tolist() == [3.0, 6.0]
    assert ops.where([True, False], 1.0, 0.0).tolist() == [1.0, 0.0]
    assert ops.stack([[1.0], [2.0]]).tolist() == [[1.0], [2.0]]
    assert ops.concat([np.ones(1), Tensor([2.0])]).shape == (2,)


def test_a_comparison_with_none_or_a_string_is_pythons():
    x = Tensor([1.0])
    for other in (None, "a"):
        assert (x == other) is False and (x != other) is True
        with pytest.raises(TypeError):
            assert x < other
    assert x in {x: 1} and hash(x) == hash(x)


def test_an_operator_in_place_makes_a_new_tensor():
    x = Tensor([1.0], requires_grad=True)
    y = x
    y += 1
    assert y is not x and x.tolist() == [1.0] and y.requires_grad


# ---- shapes that do not fit ----

MISFITS = {
    "add": (lambda a, b: a + b, r"add\(\(2, 3\), \(4,\)\)"),
    "matmul": (lambda a, b: a @ b, r"matmul\(\(2, 3\), \(4,\)\): the inner sizes .* 3 and 4"),
    "matmul of a number": (lambda a, b: a @ Tensor(2.0), r"matmul\(\(2, 3\), \(\)\).*use \*"),
    "reshape": (lambda a, b: a.reshape(4), r"reshape\(\(2, 3\)\)"),
    "flatten": (lambda a, b: a.flatten(1, 0), r"flatten: axis 1 comes after axis 0"),
    "permute": (lambda a, b: a.permute(0), r"permute\(\(2, 3\)\)"),
    "tril": (lambda a, b: b.tril(), r"tril\(\(4,\)\): a triangle needs"),
    "split": (lambda a, b: b.split([1, 2]), r"split: \[1, 2\] do not add up to 4"),
    "chunk": (lambda a, b: b.chunk(0), r"chunk: 0 pieces"),
    "repeat_interleave": (lambda a, b: b.repeat_interleave([1, 2]), r"2 numbers for 4 elements"),
    "split by nothing": (lambda a, b: b.split(0), r"must be positive"),
    "repeat": (lambda a, b: a.repeat(2), r"repeat: \(2,\) says nothing about .* tile"),
    "pad": (lambda a, b: ops.pad(a, ((1, 1),) * 3), r"pad\(\(2, 3\)\)"),
    "topk": (lambda a, b: b.topk(5), r"topk: there are 4 elements"),
    "scatter_add": (lambda a, b: b.scatter_add(0, [[0]], [[1.0]]), r"scatter_add: indices"),
    "scatter_add of few": (lambda a, b: b.scatter_add(0, [0, 0], [1.0]), r"\(1,\) are fewer"),
    "broadcast_to": (lambda a, b: b.broadcast_to((2, 3)), r"broadcast_to\(\(4,\)\)"),
    "concat": (lambda a, b: ops.concat([a, a.T]), r"concat\(\(2, 3\), \(3, 2\)\)"),
    "linear": (lambda a, b: ops.linear(a, np.ones((4, 2))), r"linear\(\(2, 3\), \(4, 2\)"),
    "gather": (lambda a, b: ops.gather(a, 0, [0]), "as many axes"),
    "dot": (lambda a, b: b.dot(a), r"dot takes two vectors; .* \(4,\) and \(2, 3\)"),
    "outer": (lambda a, b: a.outer(b), r"outer takes two vectors"),
    "where": (lambda a, b: ops.where(a > 0, a, b), r"where\(\(2, 3\), \(2, 3\), \(4,\)\)"),
}


@pytest.mark.parametrize("f, message", MISFITS.values(), ids=MISFITS)
def test_shapes_that_do_not_fit_name_the_operation_and_the_shapes(f, message):
    for kind in (RuntimeError, ValueError, ShapeError):
        with pytest.raises(kind, match=message):
            f(Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.ones(4)))


@pytest.mark.parametrize(
    "f",
    [lambda a: a.sum(axis=2), lambda a: a.max(axis=-3), lambda a: a.softmax(5),
     lambda a: a.swapaxes(0, 2), lambda a: a.transpose(0, 2), lambda a: a.squeeze(-3),
     lambda a: a.expand_dims(4), lambda a: ops.concat([a, a], axis=2), lambda a: a.take([0], 2),
     lambda a: a.gather(2, np.zeros((2, 3), dtype="int64"))],
    ids=["sum", "max", "softmax", "swapaxes", "transpose", "squeeze", "expand_dims", "concat",
         "take", "gather"],
)  # fmt: skip
def test_an_axis_out_of_range_is_an_IndexError(f):
    with pytest.raises(IndexError, match="axis"):
        f(Tensor(np.ones((2, 3)), requires_grad=True))


# ---- what an earlier version got wrong ----


def test_logsumexp_of_one_row_keeps_the_batch_axis():
    assert ops.logsumexp(Tensor([[1.0, 2.0]]), axes=(1,)).shape == (1,)
    assert ops.logsumexp(Tensor([[1.0], [2.0]]), axes=(1,)).tolist() == [1.0, 2.0]


def test_one_operation_used_twice_keeps_both_values_apart():
    a, b = Tensor(0.0, requires_grad=True), Tensor(1.0, requires_grad=True)
    first, second = ops.exp(a), ops.exp(b)
    first.backward()
    second.backward()
    assert a.grad.item() == 1.0 and b.grad.item() == pytest.approx(np.e)


def test_a_batch_of_one_gets_a_gradient_of_its_own_shape():
    a, b = Tensor(np.ones((1, 2, 3)), requires_grad=True), Tensor(np.ones((5, 3, 4)))
    (a @ b).sum().backward()
    assert a.grad.shape == (1, 2, 3) and a.grad.tolist()[0][0] == [20.0] * 3


def test_a_vector_times_a_matrix_has_gradients():
    v, m = Tensor(np.ones(3), requires_grad=True), Tensor(np.ones((3, 4)), requires_grad=True)
    (v @ m).sum().backward()
    assert v.grad.tolist() == [4.0] * 3 and m.grad.shape == (3, 4)


def test_an_array_times_a_tensor_is_a_tensor_not_an_array_of_objects():
    y = np.ones(2) * Tensor([1.0, 2.0])
    assert type(y) is Tensor and y.tolist() == [1.0, 2.0]


def test_x_to_the_power_of_zero_is_flat_at_zero():
    for exponent in (0, 0.0, Tensor(0.0)):
        x = Tensor([0.0, 2.0], requires_grad=True)
        (x**exponent).sum().backward()
        assert x.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("word", ["axis", "axes", "dim"])
def test_an_axis_goes_by_three_names(word):
    a = Tensor(np.arange(6.0).reshape(2, 3))
    assert a.sum(**{word: 1}).tolist() == [3.0, 12.0]
    assert a.max(**{word: 0}, keepdim=True).shape == (1, 3)
    assert a.max(**{word: 0}, keepdims=True).shape == (1, 3)
    assert np.allclose(a.softmax(**{word: 0}).sum(**{word: 0}).numpy(), 1)


def test_an_unknown_device_is_a_RuntimeError_and_not_one_of_shapes():
    with pytest.raises(RuntimeError, match="unknown device 'abacus'") as found:
        Tensor([1.0]).to("abacus")
    assert not isinstance(found.value, ShapeError)


@pytest.mark.parametrize(
    "f",
    [lambda x: x[0].log(), lambda x: -x[1], lambda x: x[0] / 3, lambda x: x[0] * x[1],
     lambda x: x[2].exp().sqrt(), lambda x: x.take(1).tanh(), lambda x: x[[2]].sum() ** 2],
    ids=["log", "negate", "divide", "product", "chain", "take", "list"],
)  # fmt: skip
def test_a_single_number_picked_from_a_tensor_gives_its_gradient_back(f):
    assert gradcheck(f, [np.array([0.5, 1.5, 2.5])], order=2)
    x = Tensor([0.5, 1.5, 2.5], requires_grad=True)
    f(x).backward()
    assert x.grad.dtype == "float32" and np.count_nonzero(x.grad.numpy()) in (1, 2)
