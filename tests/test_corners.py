"The edges of arithmetic: overflow, NaN, nothing at all, ties. And all that differs from PyTorch."

import itertools
from pathlib import Path

import numpy as np
import pytest

from test_dtypes import precision

import minima as mi
from minima import nn
from minima import operators as ops
from minima.autograd import Tensor, grad

ROOT = Path(__file__).resolve().parent.parent
INF, NAN = np.inf, np.nan
pytestmark = pytest.mark.filterwarnings("ignore")

# ---- what is the same ----


def array(*numbers, dtype="float32"):
    return np.array(numbers, dtype=dtype)


def none(*shape):
    return np.zeros(shape or 0, "float32")


def outcome(f, tensors, gradient):
    "The results of `f` as arrays, and their gradients by what is floating; or that it raises."
    floating = [t for t in tensors if "float" in str(t.dtype)]
    for t in floating:
        t.requires_grad_()
    try:
        found = f(*tensors)
    except (NameError, AttributeError):
        raise  # a slip of the test
    except Exception:
        return "refused"
    results = []
    for y in found if isinstance(found, tuple) else (found,):
        results.append(y)
        if y.requires_grad:
            results += gradient(y, floating)
    return [r if r is None else np.asarray(r.detach()) for r in results]


def compare(torch, f, arrays):
    "What `f` makes of our tensors must be what it makes of PyTorch's: values, dtypes, gradients."

    def cotangent(y):
        return np.random.default_rng(0).normal(size=tuple(y.shape)).astype(str(y.dtype)[-7:])

    def ours(y, floating):
        return grad(y, floating, cotangent(y), allow_unused=True, retain_graph=True)

    def theirs(y, floating):
        g = torch.tensor(cotangent(y))
        return torch.autograd.grad(y, floating, g, allow_unused=True, retain_graph=True)

    mine = outcome(f, [Tensor(a.copy()) for a in arrays], ours)
    others = outcome(f, [torch.tensor(a) for a in arrays], theirs)
    if "refused" in (mine, others):
        assert mine == others
        return
    for a, b in zip(mine, others, strict=True):
        if a is None or b is None:  # no gradient is as good as one of zeros
            assert a is b or not np.any(a if b is None else b)
            continue
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b, eps = a.astype("float64"), b.astype("float64"), 8.0 * precision(a.dtype)
        size = np.max(abs(b[np.isfinite(b)]), initial=0)
        np.testing.assert_allclose(a, b, rtol=eps, atol=eps * size)


SMALL = array(127, -128, 100, dtype="int8")
BYTES = array(0, 1, 255, dtype="uint8")
INTS = array(1, 0, -3, dtype="int64")
BOOLS = array(1, 0, 1, dtype="bool")
ODD = array(1, NAN, INF, -INF, 0.5, 0)
SAME = {  # expressions, and the arrays to try each of them on
    "overflow": ("a + a; a * a; -a; abs(a); a + 1; a - 2; 3 - a; a**7; a * 2.5; a / 2",
        [SMALL, BYTES, INTS, array(2**62, -(2**63), dtype="int64")]),
    "division by zero": ("a / 0; a / 0.0; 0 / a; 1 / a; a / a",
        [SMALL, BYTES, INTS, ODD, array(0.0, -0.0)]),
    "powers of integers": ("a**-1; a**0; a**0.5; a**2.0; a**-1.0",
        [INTS, array(4, 2, dtype="int32")]),
    "truth values": ("a + a; a * a; a * 2; a + 1.5; a / a; -a; a - a; ~a; a & a; a.sum(); a.prod();"
        "a.cumsum(0); a.max(); a.min()", [BOOLS, array(dtype="bool")]),
    "reductions": ("a.sum(); a.prod(); a.any(); a.all(); a.sum(0); a.prod(0); a.any(0); a.all(-1);"
        "a.cumsum(0); a.argmax(); a.argmin(); a.argmax(-1); a.argmin(0)",
        [ODD, SMALL, INTS, none(), none(0, 3), none(2, 0), array(NAN, NAN), array(-0.0, 0.0),
         np.float32(3), np.ones(300, "int8"), np.ones(300, "float16"), np.ones(3000, "float16")]),
    "extrema": ("a.max(); a.min(); a.amax(0); a.amax(-1); a.amin(0); a.amin(-1)",
        [SMALL, INTS, none(), none(0, 3), none(2, 0), array(INF, 1, INF), array(-0.0, 0.0),
         array(3, 3, 1), np.float32(3)]),
    "extrema of NaN": ("a.amax(0); a.amin(0)", [ODD, array(NAN, 1), array(NAN, NAN)]),
    "fractions": ("a.mean(); a.mean(0); a.mean(-1); a.var(); a.std(); a.var(0); a.std(-1);"
        "a.logsumexp(0); a.logsumexp(-1); a.softmax(0); a.softmax(-1); a.log_softmax(0)",
        [none(), none(0, 3), none(2, 0), array(3), array(2, 2), array(NAN, 1), array(INF, 1),
         array(-INF, -INF), array(-INF, 0), np.float32(3), np.ones(3000, "float16")]),
    "elementwise": ("a.exp(); a.expm1(); a.log(); a.log1p(); a.sqrt(); abs(a); a.tanh(); a.sin();"
        "a.sigmoid(); a.floor(); a.round(); a.relu(); a.erf(); a.clip(0, 1); a.clip(2, 1);"
        "a.clip(NAN, 1); a**2; a**0; a**-1; a**1.5; 2**a; 0**a; a == a; a < 0.5; a != a;"
        "a.isnan(); a.isinf(); a.isfinite()",
        [ODD, array(0.0), array(1, 0), np.float32(0), none(), none(0, 3), array(1e-40, 1.17e-38),
         array(-1, 2)]),
    "functions of integers": ("a.exp(); a.log(); a.sqrt(); a.tanh(); a.sigmoid(); a.erf(); a.sin();"
        "a.floor(); a.sign(); a.relu(); a.clip(0, 1); a.clip(0.5, 1.5); a.isnan(); a.isfinite()",
        [SMALL, BYTES, INTS]),
    "order": ("a.sort().values; a.sort(0, descending=True).values; a.argsort(); a.topk(0).values;"
        "a.topk(1).values; a.topk(1, largest=False).indices",
        [array(1, NAN, INF, -INF, 0), none(2, 0), array(3), none(0), np.float32(3)]),
    "shapes": ("a.flip(0); a.roll(1, 0); a.reshape(-1); a[None]; a[..., None]; a[a > 0]; a[[0, 0]];"
        "a.flatten(); a.tile(2); a.squeeze(0); a[0]; len(a) + a",
        [none(0, 2), none(), np.float32(3), array(1, 2), array(-1)]),
    "casts": ("a.long(); a.int(); a.bool(); a.half(); a.double(); a.float()",
        [array(1.9, -1.9, -0.0, 1e5), SMALL, BYTES, BOOLS, INTS]),
}  # fmt: skip
PAIRS = ("a + b; a * b; a / b; a**b; maximum(a, b); minimum(a, b); a == b; a < b; a >= b;"
         "where(a > b, a, b)")  # fmt: skip
EDGES = array(NAN, INF, -INF, 0, 1, -2)


@pytest.mark.parametrize("group", SAME)
def test_at_the_edges_all_is_as_in_torch(group, torch, monkeypatch):
    monkeypatch.setattr(Tensor, "amax", ops.max, raising=False)
    monkeypatch.setattr(Tensor, "amin", ops.min, raising=False)
    expressions, arrays = SAME[group]
    for expression, a in itertools.product(expressions.split(";"), arrays):
        f = eval(f"lambda a: {expression}", {"NAN": NAN})
        try:
            compare(torch, f, [np.asarray(a)])
        except AssertionError as error:
            pytest.fail(f"{expression.strip()} of {a!r}: {error}")


@pytest.mark.parametrize("expression", PAIRS.split(";"))
def test_pairs_at_the_edges_are_as_in_torch(expression, torch):
    for p, q in itertools.product(EDGES, EDGES):
        names = {name: lambda *x, name=name: of(x[-1], torch, name)(*x) for name in
                 ("maximum", "minimum", "where")}  # fmt: skip
        f = eval(f"lambda a, b: {expression}", names)
        try:
            compare(torch, f, [array(p), array(q)])
        except AssertionError as error:
            pytest.fail(f"{expression.strip()} of {p} and {q}: {error}")


def of(x, torch, name):
    "The function of this `name` for `x`, ours or PyTorch's."
    return getattr(ops if isinstance(x, Tensor) else torch, name)


# ---- what differs ----

README = (ROOT / "README.md").read_text(encoding="utf-8")
DIFFERENT = {}


def differs(*rows):
    "The decorated test proves these rows of README's table."

    def noted(test):
        DIFFERENT.update({row: test for row in rows})
        return test

    return noted


def refuses(f, *args):
    "Whether `f` of `args` raises what the libraries raise on purpose."
    try:
        f(*args)
    except (RuntimeError, TypeError, ValueError, IndexError, BufferError):
        return True
    return False


@differs("weight of `Linear`")
def _(torch):
    ours, theirs = nn.Linear(2, 3), torch.nn.Linear(2, 3)
    assert (ours.weight.shape, ours.bias.shape) == ((2, 3), (1, 3))
    assert (theirs.weight.shape, theirs.bias.shape) == ((3, 2), (3,))


@differs("a dtype")
def _(torch):
    assert Tensor([1.0]).dtype == "float32" == np.float32(1).dtype
    assert torch.tensor([1.0]).dtype != "float32"


@differs("a 0-d array beside a larger one")
def _(torch):
    assert (Tensor(array(1)) + Tensor(np.float64(1))).dtype == "float64"
    assert (torch.tensor(array(1)) + torch.tensor(np.float64(1))).dtype == torch.float32


@differs("`int64` with `uint64`")
def _(torch):
    a, b = array(1, dtype="int64"), array(1, dtype="uint64")
    assert (Tensor(a) + Tensor(b)).dtype == "float32"
    assert refuses(lambda: torch.tensor(a) + torch.tensor(b))


@differs("products of two dtypes")
def _(torch):
    a, b = np.ones((2, 2), "float32"), np.ones((2, 2))
    assert (Tensor(a) @ Tensor(b)).dtype == "float64"
    assert refuses(lambda: torch.tensor(a) @ torch.tensor(b))


@differs("fractions of integers")
def _(torch):
    for f in (lambda i: i.mean(), lambda i: i.softmax(0), lambda i: i.norm()):
        assert f(Tensor(INTS)).dtype == "float32" and refuses(f, torch.tensor(INTS))


@differs("sums of unsigned integers")
def _(torch):
    for f in (lambda u: u.sum(), lambda u: u.prod(), lambda u: u.cumsum(0)):
        assert f(Tensor(BYTES)).dtype == "uint64" and f(torch.tensor(BYTES)).dtype == torch.int64


@differs("a Python number that an integer dtype cannot hold")
def _(torch):
    assert refuses(lambda: Tensor(SMALL) + 300) and not (Tensor(SMALL) > 300).any()
    assert (torch.tensor(SMALL) + 300).dtype == torch.int8 and (torch.tensor(SMALL) > 300).any()


@differs("integers to negative powers")
def _(torch):
    a, b = array(1, 2, -1, dtype="int64"), array(-1, -1, -1, dtype="int64")
    assert refuses(lambda: Tensor(a) ** Tensor(b))
    assert (torch.tensor(a) ** torch.tensor(b)).tolist() == [1, 0, -1]


@differs("arithmetic with `bool`")
def _(torch):
    for f in (lambda b: abs(b), lambda b: b @ b, lambda b: b.relu(), lambda b: 1 - b,
              lambda b: b.argmax(), lambda b: b**b):  # fmt: skip
        assert isinstance(f(Tensor(BOOLS)), Tensor) and refuses(f, torch.tensor(BOOLS))


@differs("`sign`, `sigmoid` and `erf` of `bool`")
def _(torch):
    for f in (lambda b: b.sign(), lambda b: b.sigmoid(), lambda b: b.erf()):
        assert refuses(f, Tensor(BOOLS)) and len(f(torch.tensor(BOOLS))) == 3


@differs("`any` and `all` of `uint8`")
def _(torch):
    assert Tensor(BYTES).any().dtype == Tensor(BYTES).all().dtype == "bool"
    assert torch.tensor(BYTES).any().dtype == torch.tensor(BYTES).all().dtype == torch.uint8


@differs("`numpy()` of `bfloat16`", "`bfloat16` by DLPack")
def _(torch):
    pytest.importorskip("ml_dtypes")
    ours, theirs = Tensor([1.0], dtype="bfloat16"), torch.ones(1, dtype=torch.bfloat16)
    assert ours.numpy().dtype == "bfloat16" and refuses(lambda: theirs.numpy())
    assert refuses(lambda: np.from_dlpack(ours))
    assert torch.from_dlpack(theirs).dtype == torch.bfloat16


@differs("NumPy's functions of a tensor")
def _(torch):
    ours, theirs = Tensor([1.0, 3.0]), torch.tensor([1.0, 3.0])
    assert np.mean(ours) == 2 and refuses(np.mean, theirs)
    ours.requires_grad_()
    theirs.requires_grad_()
    assert refuses(np.array_equal, ours, [1, 3]) and not np.array_equal(theirs, [1, 3])


@differs("`sign` of NaN")
def _(torch):
    a = array(NAN, 1)
    assert np.isnan(Tensor(a).sign().tolist()[0]) and np.isnan(Tensor(a).norm(0).item())
    assert torch.tensor(a).sign().tolist() == [0.0, 1.0]
    assert torch.linalg.vector_norm(torch.tensor(a), 0) == 2


@differs("`relu` of -0")
def _(torch):
    assert not np.signbit(Tensor([-0.0]).relu().item())
    assert np.signbit(torch.tensor([-0.0]).relu().item())


@differs("the slope of `x ** 0.5` at -0 and -inf")
def _(torch):
    a = array(-0.0, -INF)
    x, y = Tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
    assert repr(grad((x**0.5).sum(), x)[0].tolist()) == "[inf, 0.0]"
    assert repr(torch.autograd.grad((y**0.5).sum(), y)[0].tolist()) == "[-inf, nan]"


@differs("`gelu` of inf in `float32`")
def _(torch):
    a = np.full(64, INF, "float32")
    assert (ops.gelu(Tensor(a)) == INF).all()
    assert torch.nn.functional.gelu(torch.tensor(a)).isnan().any()


@differs("a product that overflows")
def _(torch):
    a = np.array([1e200, 1e200, 1e-300])
    x, y = Tensor(a, requires_grad=True), torch.tensor(a, requires_grad=True)
    assert np.isfinite(grad(x.prod(), x)[0].numpy()).tolist() == [True, True, False]
    assert torch.autograd.grad(y.prod(), y)[0].isinf().all()


@differs("norms of negative order of nothing")
def _(torch):
    assert Tensor(none()).norm(-1).item() == INF
    assert refuses(lambda: torch.linalg.vector_norm(torch.tensor(none()), -1))


@differs("`max()` that meets NaN")
def _(torch):
    x, y = Tensor(array(1, NAN), requires_grad=True), torch.tensor(array(1, NAN)).requires_grad_()
    assert np.isnan(grad(x.max(), x)[0].numpy()).all()
    assert torch.autograd.grad(y.amax(0), y, retain_graph=True)[0].isnan().all()
    assert torch.autograd.grad(y.max(), y)[0].tolist() == [0.0, 1.0]


@differs("`sum(axis=())`")
def _(torch):
    assert Tensor(np.ones((2, 2))).sum(()).shape == (2, 2)
    assert torch.ones(2, 2).sum(()).shape == ()


@differs("`max(axis)`")
def _(torch):
    x, y = Tensor([2.0, 2.0], requires_grad=True), torch.tensor([2.0, 2.0], requires_grad=True)
    assert grad(x.max(0), x)[0].tolist() == [0.5, 0.5] and Tensor([[1.0]]).max((0, 1)).item() == 1
    assert sorted(torch.autograd.grad(y.max(0).values, y)[0].tolist()) == [0.0, 1.0]
    assert refuses(lambda: torch.ones(1, 1).max((0, 1)))


@differs("`clip` without limits")
def _(torch):
    assert Tensor([1.0]).clip().tolist() == [1.0] and refuses(lambda: torch.ones(1).clip())


@differs("`sort` and `topk` among equals")
def _(torch):
    a = np.arange(4000) % 2
    assert Tensor(a).topk(50).indices.tolist() == list(range(1, 100, 2))
    assert torch.tensor(a).topk(50).indices.tolist() != list(range(1, 100, 2))


@differs("`scatter_add` from a larger `src`")
def _(torch):
    src, index = np.ones(5, "float32"), np.zeros(2, "int64")
    x, y = Tensor(src, requires_grad=True), torch.tensor(src, requires_grad=True)
    (g,) = grad(Tensor([0.0]).scatter_add(0, index, x), x, [1.0])
    total = torch.zeros(1).scatter_add(0, torch.tensor(index), y)
    assert g.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0] and refuses(total.backward)


@differs("`transpose()`, `flip()`")
def _(torch):
    assert Tensor(none(0, 2, 3)).transpose().flip().shape == (3, 2, 0)
    assert refuses(lambda: torch.zeros(2, 3).transpose()) and refuses(lambda: torch.ones(2).flip())


@differs("`pad`")
def _(torch):
    assert ops.pad(Tensor(none(2, 3)), ((1, 0), (2, 3))).shape == (3, 8)
    assert torch.nn.functional.pad(torch.zeros(2, 3), (1, 0, 2, 3)).shape == (7, 4)


@differs("an index of `uint8`")
def _(torch):
    i = array(1, 0, 1, dtype="uint8")
    assert Tensor([5.0, 6.0, 7.0])[Tensor(i)].tolist() == [6.0, 5.0, 6.0]
    assert torch.tensor([5.0, 6.0, 7.0])[torch.tensor(i)].tolist() == [5.0, 7.0]


@differs("a slice with a negative step")
def _(torch):
    assert Tensor([1, 2, 3])[::-1].tolist() == [3, 2, 1]
    assert refuses(lambda: torch.tensor([1, 2, 3])[::-1])


@differs("`x += y`")
def _(torch):
    for x, same in ((Tensor([1.0]), False), (torch.tensor([1.0]), True)):
        start = x
        x += 1
        assert (x is start) == same and start.tolist() == [2.0 if same else 1.0]


@differs("methods that write")
def _(torch):
    for name in ("add_", "mul_", "relu_", "clamp_"):
        assert not hasattr(Tensor, name) and hasattr(torch.Tensor, name)


@differs("`//` and `%` of integers by zero")
def _(torch):
    zero = array(0, 0, 0, dtype="int64")
    for f in (ops.floor_divide, ops.remainder):
        assert f(Tensor(INTS), Tensor(zero)).tolist() == [0, 0, 0]
        assert refuses(getattr(torch, f.__name__), torch.tensor(INTS), torch.tensor(zero))


@differs("`masked_fill` of integers with a float")
def _(torch):
    assert ops.masked_fill(Tensor(INTS), BOOLS, 2.5).tolist() == [2.5, 0.0, 2.5]
    assert torch.tensor(INTS).masked_fill(torch.tensor(BOOLS), 2.5).tolist() == [2, 0, 2]


@differs("`x[i] = y` in a graph")
def _(torch):
    x, y = Tensor([1.0, 2.0], requires_grad=True) * 1, torch.ones(2, requires_grad=True) * 1
    y[0] = 5.0
    assert refuses(lambda: x.__setitem__(0, 5.0)) and y.tolist() == [5.0, 1.0]


@differs("`RMSProp(centered=True)`")
def _(torch):
    ours, theirs = nn.Parameter([0.0]), torch.zeros(1, requires_grad=True)
    settings = dict(lr=1e-9, centered=True, alpha=0.3)
    steps = mi.optim.RMSProp([ours], **settings), torch.optim.RMSprop([theirs], **settings)
    ours.grad, theirs.grad = Tensor(array(1.1)), torch.tensor(array(1.1))
    for _ in range(50):
        for optimizer in steps:
            optimizer.step()
    assert np.isfinite(ours.item()) and theirs.isnan()


@differs("mean loss of an empty batch")
def _(torch):
    theirs, nothing = torch.nn.functional, torch.zeros(0, 3)
    for name in ("mse_loss", "binary_cross_entropy_with_logits", "kl_div", "cross_entropy"):
        with pytest.raises(ValueError, match="empty batch"):
            getattr(nn.functional, name)(none(0, 3), none(0, 3))
        assert getattr(theirs, name)(nothing, nothing).isnan()


@differs("`cross_entropy`: probability 0 for a class of score -inf")
def _(torch):
    scores, truth = array([0, -INF]), array([1, 0])
    assert nn.functional.cross_entropy(scores, truth).item() == 0.0
    assert torch.nn.functional.cross_entropy(torch.tensor(scores), torch.tensor(truth)).isnan()


@differs("`binary_cross_entropy_with_logits`: tiny losses")
def _(torch):
    loss, z, t = "binary_cross_entropy_with_logits", array(-40), array(0)
    assert getattr(nn.functional, loss)(z, t).item() == pytest.approx(np.exp(-40), rel=1e-6, abs=0)
    assert getattr(torch.nn.functional, loss)(torch.tensor(z), torch.tensor(t)).item() == 0.0


@differs("integers as targets of `BCELoss`, `BCEWithLogitsLoss`, `KLDivLoss`")
def _(torch):
    for name in ("BCELoss", "BCEWithLogitsLoss", "KLDivLoss"):
        loss, theirs = getattr(nn, name)(), getattr(torch.nn, name)()
        assert loss(array(0.5, 0.25), [0, 1]).item() == loss(array(0.5, 0.25), array(0, 1)).item()
        assert refuses(lambda f=theirs: f(torch.tensor([0.5, 0.25]), torch.tensor([0, 1])))


@differs("shapes of `input` and `target`")
def _(torch):
    for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "kl_div"):
        assert refuses(lambda f=name: getattr(nn.functional, f)(none(3, 1), none(3)))
        assert getattr(torch.nn.functional, name)(torch.zeros(3, 1), torch.zeros(3)).item() == 0.0


@differs("weights of a loss in another dtype")
def _(torch):
    scores, weight, theirs = none(2, 3), np.ones(3), torch.nn.functional.cross_entropy
    for target in (np.array([0, 1]), none(2, 3)):
        assert nn.functional.cross_entropy(scores, target, weight).dtype == "float32"
    scores, weight = torch.tensor(scores), torch.tensor(weight)
    assert refuses(lambda: theirs(scores, torch.tensor([0, 1]), weight))
    assert theirs(scores, scores, weight).dtype == torch.float64


@differs("clipping: a parameter listed twice")
def _(torch):
    ours, theirs = nn.Parameter([0.0]), torch.zeros(1, requires_grad=True)
    ours.grad, theirs.grad = Tensor(array(3)), torch.tensor(array(3))
    assert mi.optim.clip_grad_norm_([ours, ours], 100.0).item() == 3.0
    assert torch.nn.utils.clip_grad_norm_([theirs, theirs], 100.0).item() > 4.0


@differs("`DataLoader` loads ahead")
def _(torch):
    ours, theirs = mi.data.DataLoader, torch.utils.data.DataLoader
    assert [x.tolist() for x in ours(range(3), prefetch=2)] == [[0], [1], [2]]
    assert theirs(range(3), num_workers=2).num_workers == 2
    assert refuses(lambda: ours(range(3), num_workers=2))
    assert refuses(lambda: theirs(range(3), prefetch=2))


@differs("a batch of tuples", "a batch of Python's floats")
def _(torch):
    (ours,) = mi.data.DataLoader([(1.0, 2)], 1)
    (theirs,) = torch.utils.data.DataLoader([(1.0, 2)], 1)
    assert type(ours) is tuple and type(theirs) is list
    assert ours[0].dtype == "float32" and theirs[0].dtype == torch.float64


@differs("errors in shapes")
def _(torch):
    ours = nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1))
    theirs = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(4, 1))
    with pytest.raises(RuntimeError, match="Linear '1' expects 4 features.* \\(5, 3\\)"):
        ours(Tensor(np.ones((5, 2), "float32")))
    with pytest.raises(RuntimeError, match="5x3 and 4x1"):
        theirs(torch.ones(5, 2))


def test_every_row_of_READMEs_table_is_proved():
    table = README.partition("**What differs.**")[2].partition("\n\n**")[0].splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table if line.startswith("| ")]
    assert sorted(rows[2:]) == sorted(DIFFERENT)


@pytest.mark.parametrize("row", DIFFERENT)
def test_the_difference_is_there(row, torch):
    DIFFERENT[row](torch)


def test_a_basic_index_is_a_view_and_an_array_of_indices_a_copy_as_in_torch(torch):
    for x in (Tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])):
        x[0][1], x[:, 0][1], x.T[1, 1] = 20.0, 30.0, 40.0
        x[[0]][0, 0], x.reshape(4)[0] = 50.0, 10.0
        assert x.tolist() == [[10.0, 20.0], [30.0, 40.0]]
