"Every operator on every dtype, against PyTorch; casts; and what may be stored where."

import copy
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_operators import ROWS, SCALARS, numbers

import minima as mi
from minima import nn
from minima import operators as ops
from minima.autograd import Tensor, grad, op
from minima.backend import as_dtype, get_default_dtype, is_floating, set_default_dtype

ROOT = Path(__file__).resolve().parent.parent

try:
    as_dtype("bfloat16")
except ImportError:
    EXTRA = []
else:
    EXTRA = ["bfloat16"]
HALVES = ["float16", *EXTRA]
FLOATS = [*HALVES, "float32", "float64"]
SIGNED = ["int8", "int16", "int32", "int64"]
INTEGERS = [*SIGNED, "uint8"]
DTYPES = [*FLOATS, *INTEGERS, "bool"]
UNSIGNED = ["uint16", "uint32", "uint64"]  # PyTorch has them, and can do little with them

# How far two results may be apart: so many units in the last place of the largest number around.
ULPS = 8


def precision(dtype):
    "By how much 1 and the next larger number differ; of integers, which are exact, nothing."
    if dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0


def cast(array, dtype):
    "Random floats as `dtype`; indices and masks stay what they are."
    if array.dtype.kind != "f":
        return array
    if dtype == "bool":
        return array > 0
    if "int" in dtype:
        array = np.round(array * 2)
    return (abs(array) if dtype[0] == "u" else array).astype(as_dtype(dtype))


def as_torch(torch, array):
    array = np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.name == "bfloat16":
        return torch.tensor(array.astype("float32")).to(torch.bfloat16)
    return torch.tensor(array)


def as_float64(x):
    x = x.detach()
    return x.array.astype("float64") if isinstance(x, Tensor) else x.double().numpy()


def largest(*arrays):
    finite = [np.max(abs(a[np.isfinite(a)]), initial=0.0) for a in arrays]
    return max(finite, default=0.0)


def attempt(f, arrays):
    "What `f` returns, or the exception that it raises."
    try:
        return f(*arrays)
    except Exception as error:
        return error


def dtype_name(x):
    return str(x.dtype).removeprefix("torch.")


def faults(torch, row, dtype):
    "In which ways a row differs from PyTorch in `dtype`."
    for shapes, settings in row.cases():
        arrays = [cast(a, dtype) for a in numbers(row.make, shapes)]
        mine, others = [Tensor(a) for a in arrays], [as_torch(torch, a) for a in arrays]
        wanted = [is_floating(a.dtype) for a in arrays]
        for x, y, floating in zip(mine, others, wanted):
            x.requires_grad_(floating), y.requires_grad_(floating)
        y = attempt(row.ours_with(settings), mine)
        z = attempt(row.theirs_with(torch, settings), others)
        refused = isinstance(y, Exception), isinstance(z, Exception)
        if any(refused):
            yield from {(True, False): ["we refuse"], (False, True): ["PyTorch refuses"]}.get(
                refused, []
            )
            continue
        if dtype_name(y) != dtype_name(z):
            yield f"{dtype_name(y)}, not {dtype_name(z)}"
        rng = np.random.default_rng(1)
        g = rng.normal(size=y.shape).astype(y.dtype if is_floating(y.dtype) else "float32")
        pairs = [("value", y, z)]
        if y.requires_grad != z.requires_grad:
            yield "requires_grad"
        elif y.requires_grad:
            leaves, theirs = (list(itertools.compress(x, wanted)) for x in (mine, others))
            ours = grad(y, leaves, Tensor(g), allow_unused=True)
            theirs = torch.autograd.grad(z, theirs, as_torch(torch, g), allow_unused=True)
            zero = lambda g, like: like.detach() * 0 if g is None else g
            pairs += [("gradient", zero(a, x), zero(b, x)) for a, b, x in zip(ours, theirs, leaves)]
        around = [a.astype("float64") for a in (*itertools.compress(arrays, wanted), g)]
        for what, a, b in pairs:
            if dtype_name(a) != dtype_name(b) and what == "gradient":
                yield "the dtype of the gradient"
            p, q = as_float64(a), as_float64(b)
            if p.shape != q.shape:
                yield f"the shape of the {what}"
                continue
            with np.errstate(invalid="ignore"):
                gap = np.where((p == q) | (np.isnan(p) & np.isnan(q)), 0.0, abs(p - q))
            allowed = ULPS * max(precision(t.dtype) for t in (y, *mine)) * largest(q, *around)
            if np.max(gap, initial=0.0) > allowed * is_floating(y.dtype):
                yield f"the {what}"


# ---- every operator on every dtype ----

# Where we differ from PyTorch on purpose: why (these are words of README's table), in which way,
# in which dtypes, and in which rows (by their names up to a comma).
SMALL = " ".join(INTEGERS)
DIFFERENCES = [
    ("fractions of integers", "PyTorch refuses", f"{SMALL} bool",
     "mean var std norm softplus gelu leaky_relu normalize surprise huber logaddexp"
     " dropout_add_layer_norm"),
    ("fractions of integers", "PyTorch refuses", SMALL,
     "linear silu softmax log_softmax round cross_entropy binary_cross_entropy "
     "binary_cross_entropy_with_logits"),
    *(("fractions of integers", f"float32, not {dtype}", dtype, "softmax log_softmax")
      for dtype in (*INTEGERS, "bool")),  # PyTorch returns nothing, in the wrong dtype
    ("fractions of integers", "PyTorch refuses", SMALL, "lerp"),
    ("arithmetic with `bool`", "PyTorch refuses", "bool",
     "matmul mm bmm dot linear einsum trace abs floor ceil trunc round relu power"
     " argmax argmin topk"),
    ("arithmetic with `bool`", "bool, not int64", "bool", "square"),
    ("`//` and `%` of integers by zero", "PyTorch refuses", f"{SMALL} bool",
     "floor_divide remainder"),
    ("`masked_fill` of integers with a float", "the value", "bool", "masked_fill"),
    *(("`masked_fill` of integers with a float", f"float32, not {dtype}", dtype, "masked_fill")
      for dtype in (*INTEGERS, "bool")),
    ("`sign`, `sigmoid` and `erf` of `bool`", "we refuse", "bool", "sign sigmoid erf"),
    ("integers to negative powers", "we refuse", " ".join(SIGNED), "power"),
    ("integers to negative powers", "PyTorch refuses", " ".join(SIGNED), "power"),  # none of them
    ("sums of unsigned integers", "uint64, not int64", "uint8",
     "summation prod cumsum einsum trace"),
    ("`any` and `all` of `uint8`", "bool, not uint8", "uint8", "any all"),
    ("`sort` and `topk` among equals", "the value", SMALL, "topk"),
    ("products of two dtypes", "PyTorch refuses", "int8 int16 int32 uint8", "einsum"),
]  # fmt: skip
EXPECTED = {
    (name, dtype, fault): reason
    for reason, fault, dtypes, names in DIFFERENCES
    for dtype in dtypes.split()
    for name in names.split()
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore")
def test_every_operator_agrees_with_torch_or_differs_as_the_table_says(dtype, torch):
    found = {
        (row.name.partition(",")[0], dtype, fault)
        for row in ROWS
        for fault in faults(torch, row, dtype)
    }
    assert found == {key for key in EXPECTED if key[1] == dtype}


def test_the_table_of_differences_says_what_README_says():
    said = (ROOT / "README.md").read_text(encoding="utf-8")
    for reason in {reason for reason, *_ in DIFFERENCES}:
        assert f"\n| {reason} |" in said


@pytest.mark.parametrize("dtype", UNSIGNED)
@pytest.mark.filterwarnings("ignore")
def test_unsigned_integers_compute_as_int64_does_up_to_their_size(dtype):
    for row, (shapes, settings) in ((row, row.cases()[0]) for row in ROWS):
        wide = numbers(row.make, shapes)
        wide = [abs(cast(a, "int64")) if is_floating(a.dtype) else a for a in wide]
        own = [a.astype(dtype) if a.dtype == "int64" else a for a in wide]
        f = row.ours_with(settings)
        y, z = (attempt(f, [Tensor(a) for a in arrays]) for arrays in (own, wide))
        if isinstance(y, Exception) or isinstance(z, Exception):
            assert isinstance(y, Exception) and isinstance(z, Exception), row.name
        elif is_floating(y.dtype):
            assert y.dtype == z.dtype
            np.testing.assert_allclose(y.numpy(), z.numpy(), rtol=1e-6, err_msg=row.name)
        else:
            assert y.dtype in (dtype, "uint64", "int64", "bool"), row.name
            np.testing.assert_array_equal(y.numpy(), z.numpy().astype(y.dtype), row.name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_operators_take_scalars_without_a_change_of_dtype(dtype):
    x = Tensor(np.array([1.5, 2.0, 0.5]), dtype=dtype, requires_grad=True)
    for scalar, f in itertools.product(SCALARS, (ops.add, ops.multiply, ops.divide, ops.power)):
        for y in (f(x, scalar), f(scalar, x)):
            (g,) = grad(y.sum(), x)
            assert y.dtype == g.dtype == x.dtype


# ---- half precision is for storing ----


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("axis", [0, 1, None])
def test_sums_in_half_precision_do_not_stand_still(dtype, axis):
    x = Tensor(np.ones((3000, 1) if axis == 0 else (2, 3000)), dtype=dtype)
    n = np.float32(6000 if axis is None else 3000).astype(x.dtype)
    assert (x.sum(axis).numpy() == n).all() and (x.mean(axis).numpy() == 1).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_products_and_their_gradients_are_summed_in_float32(dtype):
    x = Tensor(np.ones((1, 5000)), dtype=dtype, requires_grad=True)
    w, b = (Tensor(np.ones(s), dtype=dtype, requires_grad=True) for s in ((5000, 1), (1, 1)))
    exact = np.float32(5000).astype(x.dtype)
    for y in (x @ w, ops.einsum("ij,jk->ik", x, w), x @ w[:, 0]):
        assert (y.detach().numpy() == exact).all() and y.dtype == dtype
    rows = Tensor(np.ones((5000, 1)), dtype=dtype)
    gw, gb = grad((ops.linear(rows, w[:1], b)).sum(), (w, b))
    assert gw[0].item() == gb.item() == exact and gb.dtype == dtype
    (gb,) = grad((rows + b).sum(), b)  # where the engine undoes a broadcast
    assert gb.item() == exact


@pytest.mark.parametrize("dtype", HALVES)
def test_an_element_used_often_collects_its_gradients_in_float32(dtype):
    x = Tensor(np.ones(1), dtype=dtype, requires_grad=True)
    for y in (x[np.zeros(5000, dtype=int)], x.gather(0, np.zeros(5000, dtype=int))):
        (g,) = grad(y.sum(), x)
        assert g.item() == np.float32(5000).astype(x.dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_overflows_in_between_does_not_if_the_result_fits(dtype):
    x = Tensor([300.0, 400.0], dtype=dtype, requires_grad=True)  # the squares are beyond float16
    y = x.norm()
    (g,) = grad(y, x)
    assert y.item() == 500.0 and g.tolist() == pytest.approx([0.6, 0.8], rel=precision(x.dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_what_has_no_derivative_is_computed_in_half_precision_too(dtype):
    x, y = Tensor([1.0, 2.0, 3.0], dtype=dtype, requires_grad=True), Tensor([2.0] * 3, dtype=dtype)
    for f in (ops.equal, ops.not_equal, ops.less, ops.less_equal, ops.greater, ops.greater_equal,
              ops.logical_and, ops.floor_divide, ops.isclose):  # fmt: skip
        expected = f(x.detach().float(), y.float())
        assert f(x, y).tolist() == expected.tolist() and f(x, y).dtype in ("bool", dtype)
        assert f(x, 2.0).tolist() == expected.tolist()
    assert x.argmax().item() == 2 and x.isnan().tolist() == [False] * 3


@pytest.mark.parametrize("dtype", HALVES)
def test_second_derivatives_in_half_precision(dtype):
    x = Tensor([1.5, 2.0], dtype=dtype, requires_grad=True)
    (first,) = grad((x**3).sum(), x, create_graph=True)
    (second,) = grad(first.sum(), x)
    assert first.dtype == second.dtype == x.dtype and second.tolist() == [9.0, 12.0]


@pytest.mark.parametrize("dtype", HALVES)
def test_a_layer_trains_in_half_precision(dtype):
    mi.manual_seed(0)
    w = Tensor(np.zeros((3, 1)), dtype=dtype, requires_grad=True)
    x = Tensor(np.random.default_rng(0).normal(size=(64, 3)), dtype=dtype)
    y = x @ Tensor([[1.0], [-2.0], [0.5]], dtype=dtype)
    optimizer = mi.optim.SGD([w], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        ((x @ w - y) ** 2).mean().backward()
        optimizer.step()
    assert w.dtype == dtype and np.allclose(w.tolist(), [[1.0], [-2.0], [0.5]], atol=0.05)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_only_moves_shares_memory_in_half_precision_too(dtype):
    x = Tensor(np.zeros((2, 3)), dtype=dtype)
    for view in (x.reshape(3, 2), x.T, x[0], x[None], x.broadcast_to((4, 2, 3)), x.swapaxes(0, 1)):
        assert np.shares_memory(view.array, x.array) and view.dtype == x.dtype
    assert not np.shares_memory(x.clone().array, x.array)


def test_a_custom_op_is_widened_and_its_rule_never_meets_a_half():
    seen = []

    @op
    def square(xp, a):
        seen.append(a.dtype)
        return a * a, lambda g: seen.append(g.dtype) or 2 * g * a

    x = Tensor([3.0], dtype="float16", requires_grad=True)
    square(x).backward()
    assert seen == ["float32", "float32"] and x.grad.dtype == "float16"


def test_a_half_anywhere_among_the_arguments_is_widened():
    x = Tensor(np.full((1, 3000), 30.0), dtype="float16", requires_grad=True)
    one = Tensor(np.ones(3000, dtype="float32"))
    y = ops.normalize(x, one, one, axis=-1, eps=1e-5)  # the first argument, but not the last
    assert y.dtype == "float32" and (y.detach().numpy() == 1).all()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int16", "uint16"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_small_integers_become_floats_before_they_are_computed_with(dtype):
    i = np.array([1, 0, 1]) if dtype == "bool" else np.array([1, 12, 100])
    x = Tensor(i.astype(dtype))
    for f in (np.exp, np.sqrt, np.sin, np.tanh):
        y = getattr(ops, f.__name__)(x)
        np.testing.assert_allclose(y.numpy(), f(i.astype("float32")), rtol=1e-6)
        assert y.dtype == "float32"
    before = get_default_dtype()
    try:
        set_default_dtype("float64")
        np.testing.assert_allclose(ops.exp(x).numpy(), np.exp(i.astype("float64")), rtol=1e-15)
    finally:
        set_default_dtype(before)


# ---- promotion ----


@pytest.mark.parametrize("a, b", [*itertools.product(DTYPES, DTYPES)])
def test_two_dtypes_meet_as_in_torch(a, b, torch):
    p, q = ([True, False] if d == "bool" else [1, 2] for d in (a, b))
    ours = Tensor(p, dtype=a) + Tensor(q, dtype=b)
    theirs = torch.tensor(p, dtype=getattr(torch, a)) + torch.tensor(q, dtype=getattr(torch, b))
    assert dtype_name(ours) == dtype_name(theirs) and ours.tolist() == theirs.tolist()


STANDARD = [d for d in DTYPES if d != "bfloat16"] + UNSIGNED


@pytest.mark.parametrize("a, b", [*itertools.product(STANDARD, STANDARD)])
def test_two_dtypes_meet_as_in_numpy_but_integers_never_widen_a_float(a, b):
    numpys = np.result_type(a, b)
    floats = [d for d in (a, b) if d.startswith("float")]
    expected = np.result_type(*floats) if floats else numpys if numpys.kind != "f" else "float32"
    for f in (ops.add, ops.maximum, lambda x, y: ops.concat([x, y])):
        assert f(Tensor([1], dtype=a), Tensor([1], dtype=b)).dtype == expected


# ---- the default ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_floating_dtype_may_be_the_default(dtype):
    before = get_default_dtype()
    try:
        set_default_dtype(dtype)
        assert Tensor([1.5]).dtype == Tensor(2.0).dtype == get_default_dtype() == as_dtype(dtype)
        assert (Tensor([1, 2]) / 2).dtype == Tensor([1, 2]).mean().dtype == as_dtype(dtype)
        assert Tensor(np.ones(1, "float32")).dtype == "float32" and Tensor([1]).dtype == "int64"
        assert (Tensor(np.ones(1, "float32")) + [0.5]).dtype == "float32"
        assert "dtype" not in repr(Tensor([1.5]))
        y = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh())(mi.init.rand(2, 4))
        assert y.dtype == as_dtype(dtype) and mi.init.randn(3).dtype == y.dtype
    finally:
        set_default_dtype(before)


# ---- casts ----

CASTS = dict(
    half="float16", bfloat16="bfloat16", float="float32", double="float64",
    int="int32", long="int64", bool="bool",
)  # fmt: skip


@pytest.mark.parametrize("name", [n for n in CASTS if n != "bfloat16" or EXTRA])
@pytest.mark.parametrize("start", DTYPES)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_cast_by_name_is_that_of_torch(name, start, torch):
    (a,) = (cast(a, start) for a in numbers(lambda rng, s: rng.normal(size=s) * 3, [(4, 5)]))
    x, y = Tensor(a, requires_grad=start in FLOATS), as_torch(torch, a)
    ours, theirs = getattr(x, name)(), getattr(y, name)()
    np.testing.assert_array_equal(as_float64(ours), as_float64(theirs))
    assert dtype_name(ours) == dtype_name(theirs) == CASTS[name]
    assert (ours is x) == (CASTS[name] == start)
    assert ours.requires_grad == (start in FLOATS and CASTS[name] in FLOATS)
    if ours.requires_grad:
        (g,) = grad(ours, x, np.ones((4, 5), "float32") * 0.5)
        assert g.dtype == x.dtype and (g.numpy() == 0.5).all()


def test_to_takes_a_device_a_dtype_both_or_a_tensor_to_be_like():
    x, like = Tensor([1.0], requires_grad=True), Tensor([1], dtype="float64")
    for y in (
        x.to("float64"), x.to(np.float64), x.to("cpu", "float64"), x.to(like), x.type_as(like),
        x.to(dtype="float64"), x.astype("float64"), x.to(mi.cpu(), np.dtype("float64")),
    ):  # fmt: skip
        assert y.dtype == "float64" and y.requires_grad
    assert x.to("cpu") is x.to("float32") is x.to(x) is x.type_as(x) is x
    again = x.to("cpu", copy=True)
    assert again is not x and not np.shares_memory(again.array, x.array) and again.requires_grad


def test_a_clone_has_its_own_memory_and_the_same_graph():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = x.clone()
    y.array[0] = 9.0
    y.backward([1.0, 10.0])
    assert x.tolist() == [1.0, 2.0] and x.grad.tolist() == [1.0, 10.0]
    assert copy.copy(x.detach()).tolist() == [1.0, 2.0] and Tensor([True]).clone().dtype == bool


@pytest.mark.filterwarnings("error")
def test_small_integers_become_floats_without_a_warning_and_never_halves():
    large = Tensor(np.array([100, -100] * 1500, dtype="int8"))
    before = get_default_dtype()
    set_default_dtype("float16")
    try:
        spread = ops.var(large, correction=0)
        assert spread.item() == 10_000 and spread.dtype == "float16"  # their sum is no float16
    finally:
        set_default_dtype(before)
    assert np.isfinite(ops.exp(Tensor(np.array([50], dtype="int8"))).item())  # nor is this


# ---- bfloat16 is somebody else's ----

only_with_bfloat16 = pytest.mark.skipif(not EXTRA, reason="ml_dtypes is not installed")


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bfloat16_is_imported_when_somebody_says_its_name_and_explained_where_it_is_not():
    code = """
import sys, minima as mi
print("ml_dtypes" in sys.modules)
sys.modules["ml_dtypes"] = None
for f in (lambda: mi.Tensor([1.0], dtype="bfloat16"), lambda: mi.Tensor([1.0]).bfloat16(),
          lambda: mi.Tensor([1.0]).to("bfloat16"), lambda: mi.set_default_dtype("bfloat16")):
    try:
        f()
    except ImportError as error:
        print("pip install ml_dtypes" in str(error))
"""
    assert run(code) == ["False", "True", "True", "True", "True"]


@only_with_bfloat16
def test_an_array_of_bfloat16_that_somebody_else_made_is_known():
    code = """
import numpy as np, ml_dtypes, minima as mi
x = mi.Tensor(np.ones(3000, dtype=ml_dtypes.bfloat16), requires_grad=True)
print(x.sum().item(), np.add.reduce(x.array))
"""
    assert run(code) == ["3008.0", "256"]


@only_with_bfloat16
def test_bfloat16_goes_in_and_out():
    x = Tensor([1.0, 3.140625], dtype="bfloat16", requires_grad=True)
    assert repr(x) == "minima.Tensor(\n[1.       3.140625], dtype=bfloat16, requires_grad=True)"
    assert x.tolist() == [1.0, 3.140625] and x[0].item() == 1.0 and np.asarray(x.detach())[1] > 3
    again = pickle.loads(pickle.dumps(x))
    assert again.dtype == x.dtype and again.requires_grad and (again * 2).dtype == "bfloat16"
    assert pickle.loads(pickle.dumps(Tensor([1.0], dtype="float16"))).exp().dtype == "float16"
    with pytest.raises(BufferError, match="DLPack only supports"):
        np.from_dlpack(x.detach())


def test_what_is_no_number_is_refused_even_in_an_array():
    for array in (np.array(["a"]), np.array([1j]), np.array([None]), np.zeros(1, "V4")):
        with pytest.raises(TypeError, match="holds real numbers"):
            Tensor(array)
