"Kernels for GPUs, run by the emulator on arrays of the pretended CuPy: eagerly, and in a graph."

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from test_cuda import quiet
from test_operators import ROWS, normal, numbers

import minima as mi
from minima import backend as registry
from minima import nn, optim
from minima import operators as ops
from minima.autograd import Tensor, grad
from minima.backend import Kernels, kernels_off
from minima.capture import capture
from minima.gpu.cublas import Pretended
from minima.gpu.graphs import with_graphs
from minima.gpu.library import Cuda
from minima.kernels import cuda, launches
from minima.testing import mock
from minima.testing.emulator import can_emulate

pytestmark = pytest.mark.skipif(not can_emulate(), reason="there is no g++ to emulate kernels with")


class OnTheCard(launches.EmulatedLauncher):
    "Kernels run on the CPU, when the pretended card would run them."

    def launch(self, name, grid, block, args, shared=0):
        inside = [mock._opened(a) for a in args]
        run = super().launch
        mock.launch(lambda: run(name, grid, block, inside, shared))


@pytest.fixture(scope="module")
def backend():
    before = registry._by_name.get("cuda")
    mock.reset()
    found = with_graphs(Cuda(mock, Pretended(mock.launch)))
    registry._by_name["cuda"] = registry._by_type[mock.ndarray] = found
    registry._switch(Kernels.on)  # which forgets what was found to compute on such arrays
    yield found
    del registry._by_type[mock.ndarray], registry._by_name["cuda"]
    registry._switch(Kernels.on)
    if before is not None:
        registry._by_name["cuda"] = before


@pytest.fixture
def launcher(backend):
    mock.reset()
    with launches.launching_by(OnTheCard()) as found:
        yield found


def with_kernels():
    for row in ROWS:
        op = getattr(ops, row.name.partition(",")[0])
        kernels = getattr(getattr(op, "readings", None), "kernels", None)
        if kernels is not None and "cuda" in {*kernels.known, *kernels.homes}:
            yield pytest.param(row, id=row.name)


LEFT_TO_THE_RULE = ", of a number", ", a batch"


def found_by(row, dtype):
    "Values and gradients of a row's operator on the card, as NumPy's arrays."
    found = []
    for shapes, settings in row.cases():
        leaves = [Tensor(a, device="cuda") for a in numbers(row.make, shapes)]
        leaves = [t.to(dtype).requires_grad_() if t.dtype.kind == "f" else t for t in leaves]
        mock.counts.clear()
        y = row.ours_with(settings)(*leaves)
        found.append(y)
        if y.requires_grad:
            (g,) = numbers(normal, [y.shape])
            g = Tensor(g, device="cuda").to(y.dtype)
            mock.counts.clear()
            found += grad(y, [t for t in leaves if t.requires_grad], g)
        assert quiet()
    return [t.detach().to("float32").numpy() for t in found]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-6), ("float16", 4e-3)])
@pytest.mark.parametrize("row", [*with_kernels()])
def test_kernels_are_their_rules_on_the_card_too(row, dtype, tolerance, launcher):
    by_kernel = found_by(row, dtype)
    assert launcher.names or row.name.endswith(LEFT_TO_THE_RULE)
    with kernels_off():
        by_rule = found_by(row, dtype)
    for a, b in zip(by_kernel, by_rule, strict=True):
        np.testing.assert_allclose(a, b, tolerance, tolerance, strict=True)


def test_the_script_for_gpus_compares_kernels_with_their_rules(launcher, gpu_script, monkeypatch):
    card = SimpleNamespace(ours="cuda", backend=registry._by_name["cuda"], poison=lambda: None)
    names = [row.name for row in ROWS]
    for name in ("softmax", "normalize, rows", "cross_entropy"):
        count, faults = gpu_script.kernels_agree(card, names.index(name))
        assert count > 2 and not faults and launcher.names
    monkeypatch.setattr(gpu_script, "kernels_off", nullcontext)
    launch, runs = type(launcher).launch, []

    def only_the_first_time(self, name, grid, block, args, shared=0):
        runs.append(name)
        if len(runs) % 4 in (1, 2):  # forward and backward once, and then not
            launch(self, name, grid, block, args, shared)

    monkeypatch.setattr(type(launcher), "launch", only_the_first_time)
    count, faults = gpu_script.kernels_agree(card, names.index("softmax"))
    assert len(faults) > 10 and "differs by" in faults[0]


def trained(wrap, make):
    "Losses and weights of a small model with all that has kernels."
    mi.manual_seed(0)
    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.FusedDropoutLayerNorm(32, dropout=0.2), nn.Dropout(0.1),
        nn.Linear(32, 4),
    ).to("cuda")  # fmt: skip
    optimizer, loss_fn = make(model.parameters()), nn.CrossEntropyLoss()

    @wrap
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    losses = []
    for i in range(5):
        if i == 3:
            optimizer.param_groups[0]["lr"] *= 0.5
        x, y = rng.normal(size=(8, 16)).astype("float32"), rng.integers(0, 4, 8)
        x, y = Tensor(x, device="cuda"), Tensor(y, device="cuda")
        mock.counts.clear()
        losses.append(step(x, y))
        assert quiet()
    return step, [t.detach().numpy() for t in (*losses, *model.parameters())]


@pytest.mark.parametrize("make", [
    lambda p: optim.AdamW(p, lr=0.01), lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
], ids=["AdamW", "SGD"])  # fmt: skip
def test_a_captured_step_with_kernels_computes_the_bits_of_the_step(make, launcher):
    _, plain = trained(lambda f: f, make)
    names = {name.partition("<")[0] for name in launcher.names}
    assert {"norm_forward", "norm_backward", "bend_forward", "dropout"} <= names
    step, captured = trained(capture, make)
    assert step.recordings == 1
    for a, b in zip(plain, captured, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- losses ----

LABELS = {"all count": [0, 3, 1, 1, 2], "some ignored": [0, -100, 1, -100, 2], "none": [-100] * 5}
OPTIONS = [
    {}, {"reduction": "sum"}, {"reduction": "none"}, {"weight": [1.0, 2.0, 0.5, 3.0]},
    {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "weight": [1.0, 2.0, 0.5, 3.0]},
    {"ignore_index": 1}, {"ignore_index": 1, "reduction": "sum"},
]  # fmt: skip


def loss_and_gradient(device, scores, labels, options):
    "Cross-entropy there, and its gradient for a cotangent that differs from 1, as NumPy's arrays."
    options = {k: Tensor(v, device=device) if k == "weight" else v for k, v in options.items()}
    x = Tensor(scores, device=device, requires_grad=True)
    labels = Tensor(labels, device=device)
    mock.counts.clear()
    with np.errstate(all="ignore"):  # a mean of nothing
        loss = nn.functional.cross_entropy(x, labels, **options)
        found = loss, grad((loss * 3).sum(), x)[0]
    assert device == "cpu" or quiet()
    return [t.detach().numpy() for t in found]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("labels", LABELS)
def test_cross_entropy_goes_by_its_kernel_whatever_is_ignored(labels, options, launcher):
    labels = np.array(LABELS[labels])
    if "ignore_index" in options:
        labels = np.where(labels == -100, 1, labels)
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    found = loss_and_gradient("cuda", scores, labels, options)
    kinds = {name.partition("<")[0] for name in launcher.names}
    assert kinds >= {"cross_entropy_forward", "cross_entropy_backward"}
    if {*options} <= {"ignore_index"}:  # the mean is made at once
        assert len(launcher.names) == 3
    for mine, theirs in zip(found, loss_and_gradient("cpu", scores, labels, options)):
        np.testing.assert_allclose(mine, theirs, 2e-6, 2e-6)


@pytest.mark.parametrize("shape, axis", [((3,), 1), ((4, 3, 2), 1)])
def test_cross_entropy_of_one_example_and_of_pictures(shape, axis, launcher):
    scores = np.random.default_rng(0).normal(size=shape).astype("float32")
    labels = np.array(1) if len(shape) == 1 else np.array([[0, 1], [-100, 2], [1, 1], [2, -100]])
    both = [loss_and_gradient(device, scores, labels, {}) for device in ("cuda", "cpu")]
    for mine, theirs in zip(*both):
        np.testing.assert_allclose(mine, theirs, 2e-6, 2e-6)
    assert bool(launcher.names) == (len(shape) == 1)  # classes that do not come last: by the rule


def test_weights_of_uneven_sizes_are_read_where_they_lie(launcher, monkeypatch):
    copied, row = [], cuda._row
    monkeypatch.setattr(
        cuda, "_row", lambda a, dtype: copied.append(row(a, dtype) is not a) or row(a, dtype)
    )
    model = nn.Sequential(
        nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 7)
    ).to("cuda")  # fmt: skip
    optimizer = optim.AdamW(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        (model(mi.ones(4, 3, device="cuda")) ** 2).sum().backward()
        optimizer.step()
    del launcher.names[:], copied[:]
    model(mi.ones(4, 3, device="cuda"))
    assert "norm_forward<float, 8, false>" in launcher.names and copied and not any(copied)
    optimizer.step()
    assert launcher.names[-1] == "adam<float, 4>"  # all of them, with what lies between
