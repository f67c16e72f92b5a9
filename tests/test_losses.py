"Losses beside PyTorch, as functions and as modules; far out; by differences; and what they refuse."

import inspect
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minima import nn
from minima import operators as ops
from minima.autograd import Tensor, grad
from minima.nn import functional as F
from minima.testing import gradcheck, vs_torch

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")

FLOATS = ["float32", "float64"]
REDUCTIONS = ["mean", "sum", "none"]
LAYOUTS = {
    "as it is": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T if a.ndim else a,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2] if a.ndim else a,
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1] if a.ndim else a,
}


def normal(*shape, seed=0):
    return np.asarray(np.random.default_rng(seed).normal(size=shape))


def share(*shape, seed=0):
    "Between 0 and 1."
    return np.asarray(np.random.default_rng(seed).uniform(0.02, 0.98, size=shape))


def below(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, n, size=shape)


def both(torch, name, **options):
    "The function `name` of ours and of PyTorch's, with `options`; weights are arrays."
    ours = {k: Tensor(v) if "weight" in k else v for k, v in options.items()}
    tensors = {k: torch.tensor(v) for k, v in options.items() if "weight" in k}

    def theirs(input, target, **given):
        like = {k: t.to(input.dtype) for k, t in tensors.items()}
        return getattr(torch.nn.functional, name)(input, target, **options | like | given)

    return lambda *a: getattr(F, name)(*a, **ours), theirs


def modules(torch, name, **options):
    "The module `name` of ours and of PyTorch's, with `options`; weights are arrays."
    tensors = {k: torch.tensor(v) for k, v in options.items() if "weight" in k}
    return getattr(nn, name)(**options), getattr(torch.nn, name)(**options | tensors)


# ---- elementwise: one row per loss ----


@dataclass
class Row:
    "A loss that compares two arrays of one shape: its module, what it is given, and its options."

    module: str
    inputs: tuple = (normal, normal)
    options: list = field(default_factory=lambda: [{}])
    weights: tuple = ()  # options that are arrays
    reductions: list = field(default_factory=lambda: REDUCTIONS)

    def cases(self, shape):
        "All options, and each set of weights."
        weight = share(*shape[-1:], seed=7) * 3
        chosen = [{}, *({w: weight} for w in self.weights), {w: weight for w in self.weights}]
        return [a | b for a, b in product(self.options, chosen if self.weights else [{}])]

    def arrays(self, shape):
        return [make(*shape, seed=i) for i, make in enumerate(self.inputs)]


def log_share(*shape, seed=0):
    return np.log(share(*shape, seed=seed))


ROWS = {
    "mse_loss": Row("MSELoss"),
    "l1_loss": Row("L1Loss"),
    "huber_loss": Row("HuberLoss", options=[{}, {"delta": 0.3}, {"delta": 5}]),
    "smooth_l1_loss": Row("SmoothL1Loss", options=[{}, {"beta": 0.3}, {"beta": 5.0}, {"beta": 0}]),
    "binary_cross_entropy_with_logits": Row(
        "BCEWithLogitsLoss", (normal, share), weights=("weight", "pos_weight")
    ),
    "binary_cross_entropy": Row("BCELoss", (share, share), weights=("weight",)),
    "kl_div": Row("KLDivLoss", (log_share, share), reductions=[*REDUCTIONS, "batchmean"]),
    "kl_div, of logarithms": Row(
        "KLDivLoss", (log_share, log_share), [{"log_target": True}], (), [*REDUCTIONS, "batchmean"]
    ),
}
SHAPES = [(), (5,), (3, 1), (2, 3), (2, 3, 4)]
BY_NAME = pytest.mark.parametrize("name", ROWS)


@BY_NAME
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_dtype_and_gradients_as_in_torch(torch, name, shape, dtype):
    row, function = ROWS[name], name.partition(",")[0]
    for options, reduction in product(row.cases(shape), row.reductions):
        ours, theirs = both(torch, function, reduction=reduction, **options)
        vs_torch(ours, theirs, row.arrays(shape), dtype=dtype, verbose=False)


@BY_NAME
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(torch, name, layout):
    row, function = ROWS[name], name.partition(",")[0]
    arrays = [LAYOUTS[layout](a) for a in row.arrays((2, 3, 4))]
    for reduction in ("none", "mean"):
        ours, theirs = both(torch, function, reduction=reduction, **row.cases((4,))[-1])
        vs_torch(ours, theirs, arrays, verbose=False)


@BY_NAME
def test_the_sum_of_nothing_is_zero_and_its_mean_an_error(torch, name):
    row, function = ROWS[name], name.partition(",")[0]
    for shape, reduction in product([(0, 3), (2, 0)], ["sum", "none"]):
        ours, theirs = both(torch, function, reduction=reduction)
        vs_torch(ours, theirs, row.arrays(shape), verbose=False)
    with pytest.raises(ValueError, match=rf"^{row.module} got an empty batch.*skip"):
        getattr(F, function)(*row.arrays((0, 3)))


@BY_NAME
def test_gradients_are_what_differences_say_to_second_order(name):
    row, function = ROWS[name], getattr(F, name.partition(",")[0])
    a, b = row.arrays((2, 3))
    if "normal" in str(row.inputs) and "entropy" not in name:
        b = a + np.array([[0.13, -0.21, 0.07], [-6.0, 7.1, 0.9]])  # away from all kinks
    for options, reduction in product(row.cases((2, 3)), row.reductions):
        loss = lambda x, y, options=options | {"reduction": reduction}: function(x, y, **options)
        assert gradcheck(loss, [a, b], order=2, directions=1)


@BY_NAME
def test_modules_are_functions_with_settings(torch, name):
    row, function = ROWS[name], name.partition(",")[0]
    arrays = row.arrays((2, 3))
    for options, reduction in product(row.cases((2, 3)), row.reductions):
        ours, theirs = modules(torch, row.module, reduction=reduction, **options)
        expected = getattr(F, function)(*arrays, reduction=reduction, **options)
        assert np.array_equal(ours(*arrays), expected) and repr(ours) == repr(theirs)
        vs_torch(ours, theirs, arrays, verbose=False)


@BY_NAME
def test_targets_may_be_integers_truth_values_and_lists(name):
    row, function = ROWS[name], getattr(F, name.partition(",")[0])
    (a, _), b = row.arrays((4,)), [0, 1, 1, 0]
    expected = function(a, np.array(b, dtype="float64")).item()
    for target in (b, np.array(b), np.array(b, dtype="uint8"), np.array(b, dtype=bool), Tensor(b)):
        loss = function(Tensor(a), target)
        assert loss.item() == expected and loss.dtype == "float64"
    assert function(Tensor(a, dtype="float32"), b).dtype == "float32"


@BY_NAME
def test_shapes_are_compared_and_never_broadcast(name):
    row, function = ROWS[name], getattr(F, name.partition(",")[0])
    for shape, other, fix in [((3, 1), (3,), ": reshape"), ((2, 3), (3,), "$"), ((3,), (), "$")]:
        words = rf"^{row.module} expects two equal shapes, got {shape} and {other}{fix}"
        with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
            function(row.inputs[0](*shape), row.inputs[1](*other))
    with pytest.raises(ValueError, match=f"^{row.module} expects reduction .* got 'max'$"):
        function(*row.arrays((3,)), reduction="max")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (2, 1), (2, 3)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_of_yes_or_no_broadcast_as_in_torch(torch, shape, reduction):
    weight = share(*shape)
    for name, inputs, options in [
        ("binary_cross_entropy_with_logits", (normal, share), {"weight": weight}),
        ("binary_cross_entropy_with_logits", (normal, share), {"pos_weight": weight}),
        ("binary_cross_entropy", (share, share), {"weight": weight}),
    ]:
        ours, theirs = both(torch, name, reduction=reduction, **options)
        vs_torch(ours, theirs, [make(2, 3, seed=2) for make in inputs], verbose=False)


# ---- at the edges ----


@pytest.mark.parametrize("dtype", FLOATS)
def test_yes_or_no_bears_scores_of_any_size(torch, dtype):
    z = np.array([-1e4, -100.0, -1.0, 0.0, -0.0, 1.0, 100.0, 1e4])
    for t in (np.zeros(8), np.ones(8), share(8)):
        ours, theirs = both(torch, "binary_cross_entropy_with_logits", reduction="none")
        vs_torch(ours, theirs, [z, t], dtype=dtype, verbose=False)
        x = Tensor(z, dtype=dtype, requires_grad=True)
        loss = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        assert np.isfinite(loss.data.numpy()).all()
        assert np.isfinite(grad(loss.sum(), x)[0].numpy()).all()


def test_yes_or_no_keeps_all_digits_of_small_losses():
    for z, t in [(-40.0, 0), (40.0, 1), (-300.0, 0), (300.0, 1)]:
        x = Tensor([z], dtype="float64", requires_grad=True)
        loss = F.binary_cross_entropy_with_logits(x, [t])
        exact = pytest.approx(np.exp(-abs(z)), rel=1e-12, abs=0)
        assert loss.item() == exact and (1 - 2 * t) * grad(loss, x)[0].item() == exact


@pytest.mark.parametrize("dtype", FLOATS)
def test_probabilities_of_0_and_1_cost_at_most_100(torch, dtype):
    p, t = np.array([0.0, 0.0, 1.0, 1.0, 1e-30, 0.0]), np.array([0.0, 1.0, 0.0, 1.0, 1.0, 0.5])
    ours, theirs = both(torch, "binary_cross_entropy", reduction="none")
    rtol = 1e-5 if dtype == "float32" else 1e-8  # PyTorch rounds the bound 1e-12 to float32
    vs_torch(ours, theirs, [p, t], dtype=dtype, rtol=rtol, verbose=False)
    assert ours(p, t).tolist()[:4] == [0.0, 100.0, 100.0, 0.0]


def test_what_probability_zero_adds_to_a_divergence_is_nothing(torch):
    log_q = Tensor([0.1, -3.0], dtype="float64", requires_grad=True)
    ours, theirs = both(torch, "kl_div", reduction="none")
    assert ours(log_q, [0, 0]).tolist() == theirs(torch.zeros(2), torch.zeros(2)).tolist()
    assert grad(ours(log_q, [0.0, 0.5]).sum(), log_q)[0].tolist() == [0.0, -0.5]
    for log_q, p in [([-np.inf], [0.5]), ([-1.0], [-1.0])]:
        vs_torch(ours, theirs, [np.array(log_q), np.array(p)], verbose=False)


@pytest.mark.parametrize("name", ["huber_loss", "smooth_l1_loss", "l1_loss"])
def test_at_a_kink_the_slope_is_torchs(torch, name):
    d = np.array([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf, -np.inf, np.nan])
    ours, theirs = both(torch, name, reduction="none")
    vs_torch(lambda d: ours(d, np.zeros(9)), lambda d: theirs(d, torch.zeros_like(d)), [d])


# ---- one of many ----


def shape_of_labels(shape):
    return shape[:1] * (len(shape) > 1) + shape[2:]


CLASSES = [(1,), (4,), (1, 1), (5, 3), (2, 3, 4), (1, 3, 2, 2), (3, 1, 2)]
OF_LABELS = [
    {}, {"weight": [0.5, 2.0, 1.0, 3.0]}, {"ignore_index": 1}, {"ignore_index": 99},
    {"weight": [0.5, 2.0, 1.0, 3.0], "ignore_index": 0},
]  # fmt: skip


def fitting(options, classes):
    "`options`, with as many weights as there are `classes`."
    some = {"weight": np.array(options["weight"][:classes])} if "weight" in options else {}
    return options | some


def some_labels(shape, options):
    "Labels below the number of classes, of which some are to be ignored."
    labels = np.asarray(below(shape[min(len(shape) - 1, 1)], *shape_of_labels(shape)))
    if labels.ndim and labels.size > 1 and options.get("ignore_index") == 99:
        labels.reshape(-1)[::2] = 99
    return labels


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", CLASSES)
def test_labels_cost_as_in_torch(torch, name, shape, dtype):
    smoothings = [{}, {"label_smoothing": 0.1}] if name == "cross_entropy" else [{}]
    for options, smoothing, reduction in product(OF_LABELS, smoothings, REDUCTIONS):
        options = fitting(options, shape[min(len(shape) - 1, 1)])
        ours, theirs = both(torch, name, reduction=reduction, **options, **smoothing)
        inputs = [normal(*shape), some_labels(shape, options)]
        vs_torch(ours, theirs, inputs, dtype=dtype, verbose=False)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", CLASSES)
def test_probabilities_cost_as_in_torch(torch, shape, dtype):
    for options, smoothing, reduction in product(OF_LABELS[:2], [0.0, 0.1, 1.0], REDUCTIONS):
        options = fitting(options, shape[min(len(shape) - 1, 1)])
        options |= {"label_smoothing": smoothing, "reduction": reduction}
        ours, theirs = both(torch, "cross_entropy", **options)
        vs_torch(ours, theirs, [normal(*shape), share(*shape)], dtype=dtype, verbose=False)


@st.composite
def classifications(draw):
    "Scores, labels or probabilities, and options: a case for `cross_entropy` or `nll_loss`."
    classes = draw(st.integers(1, 5))
    extra = draw(st.lists(st.integers(1, 3), max_size=2))
    shape = draw(st.sampled_from([(classes,), (draw(st.integers(1, 4)), classes, *extra)]))
    seed, scale = draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 1.0, 100.0, 1e4]))
    options = {"reduction": draw(st.sampled_from(REDUCTIONS))}
    if draw(st.booleans()):
        options["weight"] = share(classes, seed=seed) * draw(st.sampled_from([1.0, 10.0]))
    labels = np.asarray(below(classes, *shape_of_labels(shape), seed=seed))
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([-100, -1, 0, classes - 1, classes, 255]))
        hidden = np.random.default_rng(seed).random(labels.shape) < draw(st.sampled_from([0.3, 1]))
        labels = np.where(hidden, options["ignore_index"], labels)
    return normal(*shape, seed=seed) * scale, labels, options


@settings(max_examples=150)
@given(classifications(), st.sampled_from([0.0, 0.0, 0.1, 0.7]), st.sampled_from(FLOATS))
def test_any_labels_cost_as_in_torch(torch, case, smoothing, dtype):
    scores, labels, options = case
    ours, theirs = both(torch, "cross_entropy", label_smoothing=smoothing, **options)
    vs_torch(ours, theirs, [scores, labels], dtype=dtype, verbose=False)
    vs_torch(*both(torch, "nll_loss", **options), [scores, labels], dtype=dtype, verbose=False)


@settings(max_examples=80)
@given(classifications(), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from(FLOATS))
def test_any_probabilities_cost_as_in_torch(torch, case, smoothing, dtype):
    scores, _, options = case
    options.pop("ignore_index", None)
    ours, theirs = both(torch, "cross_entropy", label_smoothing=smoothing, **options)
    vs_torch(ours, theirs, [scores, share(*scores.shape)], dtype=dtype, verbose=False)


@settings(max_examples=80)
@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.integers(0, 99),
    st.sampled_from([1.0, 100.0, 1e4]),
    st.sets(st.sampled_from(["weight", "pos_weight"])),
    st.sampled_from(["sum", "none"]),
)
def test_any_yes_or_no_costs_as_in_torch(torch, shape, seed, scale, weights, reduction):
    options = {w: share(*shape[-1:], seed=seed) for w in weights} | {"reduction": reduction}
    inputs = [normal(*shape, seed=seed) * scale, share(*shape, seed=seed + 1)]
    ours, theirs = both(torch, "binary_cross_entropy_with_logits", **options)
    vs_torch(ours, theirs, inputs, verbose=False)
    options.pop("pos_weight", None)
    ours, theirs = both(torch, "binary_cross_entropy", **options)
    vs_torch(ours, theirs, [share(*shape, seed=seed), inputs[1]], verbose=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_scores_and_labels_do_not_matter(torch, layout):
    for scores, labels in [
        (normal(5, 3), below(3, 5)),
        (normal(2, 3, 4), below(3, 2, 4)),
        (normal(2, 3, 4), share(2, 3, 4)),
    ]:
        arrays = [LAYOUTS[layout](scores), LAYOUTS[layout](labels)]
        for reduction in ("mean", "none"):
            ours, theirs = both(torch, "cross_entropy", reduction=reduction)
            vs_torch(ours, theirs, arrays, verbose=False)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_no_examples_cost_nothing_and_have_no_mean(torch, name):
    function = getattr(F, name)
    for shape, reduction in product([(0, 3), (0, 3, 2), (2, 3, 0)], ["sum", "none"]):
        ours, theirs = both(torch, name, reduction=reduction)
        inputs = [normal(*shape), below(3, *shape_of_labels(shape))]
        vs_torch(ours, theirs, inputs, verbose=False)
    assert function(normal(0, 3), [], reduction="sum").item() == 0.0
    for labels in ([], np.zeros(0, dtype=int)):
        with pytest.raises(ValueError, match="empty batch.*skip"):
            function(normal(0, 3), labels)
    vs_torch(*both(torch, "cross_entropy", reduction="sum"), [normal(0, 3), normal(0, 3)])


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
def test_if_nothing_counts_the_mean_is_nan_and_the_gradient_zero(torch, name, shape):
    labels = np.full(shape_of_labels(shape), -100)
    for options in ({}, {"weight": np.ones(3)}):
        vs_torch(*both(torch, name, **options), [normal(*shape), labels], verbose=False)
        x = Tensor(normal(*shape), requires_grad=True)
        loss = getattr(F, name)(x, labels, **options)
        assert np.isnan(loss.item()) and not grad(loss, x)[0].numpy().any()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 1), (5, 3), (7, 10)])
def test_scores_of_any_size_and_labels_of_any_kind(torch, shape, scale, dtype):
    scores, labels = normal(*shape) * scale, below(shape[1], shape[0], seed=1)
    theirs = torch.nn.CrossEntropyLoss()
    vs_torch(nn.CrossEntropyLoss(), theirs, [scores, labels], dtype=dtype, verbose=False)
    for kind in ("int32", "uint8", "int64"):
        loss = nn.CrossEntropyLoss()(Tensor(scores), Tensor(labels.astype(kind)))
        assert loss.item() == F.cross_entropy(scores, labels.tolist()).item()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_class_that_is_impossible_is_borne(torch, reduction):
    scores = np.array([[0.5, -np.inf, 1.0], [2.0, 0.0, -np.inf]])
    ours, theirs = both(torch, "cross_entropy", reduction=reduction)
    for labels in ([0, 1], [1, 1], [2, -100]):
        vs_torch(ours, theirs, [scores, np.array(labels)], verbose=False)
    smoothed = F.cross_entropy(scores, [0, 1], reduction=reduction, label_smoothing=0.1)
    assert np.isinf(smoothed.numpy()).all()  # a share of what is impossible

    x, one_hot = Tensor(scores, requires_grad=True), np.eye(3)[[0, 1]]
    by_rows, by_labels = (F.cross_entropy(x, t, reduction=reduction) for t in (one_hot, [0, 1]))
    assert np.allclose(by_rows.data, by_labels.data, rtol=1e-14)  # where PyTorch has nan
    assert np.allclose(grad(by_rows.sum(), x)[0], grad(by_labels.sum(), x)[0], rtol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, np.array([0.5, 2.0, 1.0])], ids=["plain", "weighted"])
def test_gradients_of_classes_are_what_differences_say_to_second_order(weight, reduction):
    options = {"weight": weight, "reduction": reduction}
    smoothed = partial(F.cross_entropy, label_smoothing=0.2, **options)
    losses = partial(F.cross_entropy, **options), partial(F.nll_loss, **options), smoothed
    cases = [(normal(4, 3), [0, 2, -100, 1]), (normal(3), 1), (normal(2, 3, 1), [[2], [0]])]
    for z, labels in cases:
        for loss in losses:
            assert gradcheck(loss, [z, np.array(labels)], order=2, directions=1)
        assert gradcheck(smoothed, [z, share(*z.shape)], order=2, directions=1)


def test_cross_entropy_is_the_divergence_and_the_entropy():
    z, p = normal(5, 4), np.random.default_rng(1).dirichlet(np.ones(4), size=5)
    entropy = -(p * np.log(p)).sum(axis=1).mean()
    divergence = F.kl_div(F.log_softmax(z), p, "batchmean").item()
    assert F.cross_entropy(z, p).item() == pytest.approx(divergence + entropy, rel=1e-13)


def test_ignored_labels_are_as_if_they_were_not_there():
    z, labels, weight = normal(6, 3), np.array([0, 7, 2, 7, 7, 1]), [1.0, 2.0, 3.0]
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.3, "weight": weight}):
        there = F.cross_entropy(z[labels != 7], labels[labels != 7], **options).item()
        assert F.cross_entropy(z, labels, ignore_index=7, **options).item() == pytest.approx(there)


def test_the_usual_case_is_one_rule(monkeypatch):
    calls = []
    monkeypatch.setattr(ops, "cross_entropy", lambda *a: calls.append(a) or Tensor(0.0))
    z = normal(3, 2)
    F.cross_entropy(z, [0, 1, 0])
    nn.CrossEntropyLoss()(z, [0, 1, 0])
    assert len(calls) == 2
    F.cross_entropy(z, [0, 1, -100])
    F.cross_entropy(z, [0, 1, 0], ignore_index=0)
    assert len(calls) == 2


# ---- modules ----


def test_modules_for_classes_are_functions_with_settings(torch):
    weight, labels = np.array([0.5, 2.0, 1.0]), np.array([0, 1, 2, 1])
    for name, function, options in [
        ("CrossEntropyLoss", F.cross_entropy, {}),
        ("CrossEntropyLoss", F.cross_entropy, {"weight": weight, "ignore_index": 1}),
        ("CrossEntropyLoss", F.cross_entropy, {"reduction": "sum", "label_smoothing": 0.2}),
        ("NLLLoss", F.nll_loss, {}),
        ("NLLLoss", F.nll_loss, {"weight": weight, "ignore_index": 1, "reduction": "none"}),
    ]:
        ours, theirs = modules(torch, name, **options)
        assert np.array_equal(ours(normal(4, 3), labels), function(normal(4, 3), labels, **options))
        vs_torch(ours, theirs, [normal(4, 3), labels], verbose=False)
        assert repr(ours) == repr(theirs) == f"{name}()"


@pytest.mark.parametrize("name, weights", [
    ("CrossEntropyLoss", ["weight"]), ("NLLLoss", ["weight"]), ("BCELoss", ["weight"]),
    ("BCEWithLogitsLoss", ["weight", "pos_weight"]),
])  # fmt: skip
def test_weights_are_buffers_that_move_and_are_saved_as_in_torch(torch, name, weights):
    options = {w: np.array([1.0, 2.0, 3.0]) * (1 + i) for i, w in enumerate(weights)}
    ours, theirs = modules(torch, name, **options)
    assert not ours.parameters() and [*ours.state_dict()] == [*theirs.state_dict()] == weights
    for key, value in theirs.state_dict().items():
        assert np.array_equal(ours.state_dict()[key], value)
    assert all(b.dtype == "float32" for b in ours.to("float32").buffers())
    ours.load_state_dict({w: [4.0, 5.0, 6.0] for w in weights})
    assert ours.weight.tolist() == [4.0, 5.0, 6.0]
    assert not getattr(nn, name)().state_dict() and not getattr(torch.nn, name)().state_dict()


def test_weights_take_the_dtype_of_the_scores():
    z = Tensor(normal(4, 3), dtype="float32")
    for weight in ([1, 2, 3], np.array([1.0, 2.0, 3.0]), Tensor([1.0, 2.0, 3.0])):
        for loss in (F.cross_entropy(z, [0, 1, 2, 0], weight), F.nll_loss(z, [0, 1, 2, 0], weight)):
            assert loss.dtype == "float32"
        assert F.binary_cross_entropy_with_logits(z, np.ones((4, 3)), weight).dtype == "float64"
        loss = F.binary_cross_entropy_with_logits(z, [[1, 0, 1]] * 4, weight, pos_weight=weight)
        assert loss.dtype == "float32"


def test_options_have_torchs_names_order_and_defaults(torch):
    names = "L1Loss MSELoss BCEWithLogitsLoss BCELoss NLLLoss HuberLoss SmoothL1Loss KLDivLoss"
    functions = [name.partition(",")[0] for name in ROWS] + ["cross_entropy", "nll_loss"]
    pairs = [(getattr(nn, n), getattr(torch.nn, n)) for n in [*names.split(), "CrossEntropyLoss"]]
    pairs += [(getattr(F, n), getattr(torch.nn.functional, n)) for n in functions]
    for ours, theirs in pairs:
        ours, theirs = (inspect.signature(f).parameters for f in (ours, theirs))
        theirs = [p for p in theirs.values() if p.name not in ("size_average", "reduce")]
        expected = [(p.name, p.default) for p in theirs][: len(ours)]
        assert [(p.name, p.default) for p in ours.values()] == expected
        assert {p.name for p in theirs} - set(ours) <= {"weight"}  # of quantities: new in PyTorch


# ---- what is refused ----

Z, ROWS_OF_INTS = normal(2, 3), [[0, 1, 0], [1, 0, 0]]
REFUSED = {
    # a call, the type of the error (torch's), and words of the message
    "too large": (lambda f: f(Z, [0, 3]), IndexError, "Loss .*3 classes: index 3 is out of range"),
    "negative": (lambda f: f(Z, [0, -1]), IndexError, "index -1"),
    "wrong beside ignored": (lambda f: f(Z, [-100, 3]), IndexError, "3 classes: index 3"),
    "another ignored": (lambda f: f(Z, [0, -100], ignore_index=1), IndexError, "index -100"),
    "float": (
        lambda f: f(Z, [0.0, 1.0]),
        TypeError,
        r"Loss expects integer labels, got float32.*\.to\('int64'\)",
    ),
    "bool": (lambda f: f(Z, [True, False]), TypeError, "got bool"),
    "one-hot": (lambda f: f(Z, ROWS_OF_INTS), ValueError, r"one-hot, use target.argmax\(axis=1\)"),
    "one one-hot": (lambda f: f(Z[0], [0, 1, 0]), ValueError, r"target.argmax\(axis=0\)"),
    "column": (
        lambda f: f(Z, [[0], [1]]),
        ValueError,
        r"expects labels \(2,\) for input \(2, 3\), got \(2, 1\): use target.reshape\(\(2,\)\)$",
    ),
    "lengths": (lambda f: f(Z, [0, 1, 2]), ValueError, r"\(2,\) for input \(2, 3\), got \(3,\)$"),
    "classes last": (
        lambda f: f(normal(2, 5, 3), below(3, 2, 5)),
        ValueError,
        r"labels \(2, 3\) for.*classes come second, so use input.swapaxes\(1, -1\)",
    ),
    "a number": (lambda f: f(1.0, 0), ValueError, r"\(C,\), \(N, C\) or \(N, C, ...\), got a s"),
    "weights": (lambda f: f(Z, [0, 1], [1.0, 2.0]), ValueError, r"one weight per class, \(3,\), g"),
    "reduction": (lambda f: f(Z, [0, 1], reduction="max"), ValueError, "'none', got 'max'"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("function, layer", [
    (F.cross_entropy, "CrossEntropyLoss"), (F.nll_loss, "NLLLoss"),
])  # fmt: skip
def test_labels_that_cannot_be_meant_are_refused_with_a_reason(function, layer, name):
    call, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words) as caught:
        call(function)
    assert str(caught.value).startswith(layer)


OTHERS = {
    "smoothing": (
        lambda: F.cross_entropy(Z, [0, 1], label_smoothing=1.5),
        RuntimeError,
        "^CrossEntropyLoss expects label_smoothing from 0 to 1, got 1.5$",
    ),
    "smoothing nan": (
        lambda: F.cross_entropy(Z, [0, 1], label_smoothing=np.nan),
        RuntimeError,
        "got nan",
    ),
    "ignored probabilities": (
        lambda: F.cross_entropy(Z, share(2, 3), ignore_index=0),
        RuntimeError,
        "no label to ignore",
    ),
    "probabilities for nll": (lambda: F.nll_loss(Z, share(2, 3)), ValueError, "argmax"),
    "probabilities elsewhere": (lambda: F.cross_entropy(Z, share(3, 3)), ValueError, r"got \(3, 3"),
    "delta": (lambda: F.huber_loss(Z, Z, delta=0), RuntimeError, "^HuberLoss.*> 0, got 0.*L1Loss"),
    "delta nan": (lambda: F.huber_loss(Z, Z, delta=np.nan), RuntimeError, "got nan"),
    "beta": (lambda: F.smooth_l1_loss(Z, Z, beta=-1), RuntimeError, "^SmoothL1Loss.*0, got -1"),
    "scores": (
        lambda: F.binary_cross_entropy([1.5, -1.0], [1, 0]),
        RuntimeError,
        "^BCELoss expects probabilities from 0 to 1.*BCEWithLogitsLoss",
    ),
    "nan": (lambda: nn.BCELoss()([np.nan], [1]), RuntimeError, "^BCELoss expects prob"),
    "weight": (
        lambda: nn.BCEWithLogitsLoss([1.0] * 4)(Z, share(2, 3)),
        ValueError,
        r"^BCEWithLogitsLoss expects a weight that broadcasts to \(2, 3\), got \(4,\)$",
    ),
    "pos_weight": (
        lambda: nn.BCEWithLogitsLoss(pos_weight=np.ones((4, 2, 3)))(Z, share(2, 3)),
        ValueError,
        r"a pos_weight that broadcasts to \(2, 3\), got \(4, 2, 3\)",
    ),
    "weight of BCE": (lambda: nn.BCELoss([1.0, 1.0])(share(2, 3), Z), ValueError, "^BCELoss.*2, 3"),
    "batchmean": (lambda: F.mse_loss(Z, Z, "batchmean"), ValueError, "^MSELoss.*'batchmean'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_options_that_cannot_be_meant_are_refused_with_a_reason(name):
    call, kind, words = OTHERS[name]
    with pytest.raises(kind, match=words):
        call()


def test_an_error_inside_a_model_names_the_loss():
    class Model(nn.Module):
        def __init__(self):
            self.loss = nn.MSELoss()

        def forward(self, x, t):
            return self.loss(x, t)

    with pytest.raises(ValueError, match="^MSELoss 'loss' expects two equal shapes"):
        Model()(normal(3, 1), normal(3))


# ---- calls that older notebooks make ----


def test_a_softmax_before_cross_entropy_is_what_the_page_says():
    perfect, labels = Tensor(np.eye(10) * 1000), np.arange(10)
    assert F.cross_entropy(perfect, labels).item() == 0.0
    assert F.cross_entropy(F.softmax(perfect), labels).item() == pytest.approx(1.4612, abs=1e-4)


def test_cross_entropy_gives_the_number_that_older_notebooks_show():
    logits = [
        [0.6734, 0.2576],
        [0.4689, 0.4607],
        [-2.2457, -0.3727],
        [4.4164, -1.2760],
        [0.9233, 0.5347],
        [1.0698, 1.6187],
    ]
    logits, target = Tensor(logits, dtype="float64"), Tensor([0, 1, 0, 1, 1, 0])
    shown = pytest.approx(1.8044446680186768, abs=1e-8)
    assert nn.CrossEntropyLoss()(logits, target).item() == shown
    sums = ops.logsumexp(logits, axes=(1,)).sum()
    chosen = (logits * np.eye(2)[[0, 1, 0, 1, 1, 0]]).sum()
    assert ((sums - chosen) / target.shape[0]).item() == shown
