"The backend for GPUs, on a pretended CuPy: numbers, places, waits, errors. No GPU is needed."

import ast
import ctypes
import importlib
import inspect
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_conformance import LOSSES, compare_second_derivatives, on
from test_conformance import equal as equal_at
from test_house import path_in_xp, rules, sources_of_rules
from test_nn_layers import CASES as LAYERS
from test_nn_layers import ROWS as LAYER_ROWS
from test_operators import ROWS, SMOOTH, normal, numbers
from test_optim import SETTINGS, label

from minima import backend as registry
from minima import data, nn, optim
from minima.autograd import Tensor, from_dlpack, grad
from minima.backend import Kernels, backend_of, get_backend, kernels_off, register
from minima.gpu import cards
from minima.gpu.cublas import _TYPES, SIGNATURES, Cublas, Pretended, distance, layout
from minima.gpu.library import _PUT, Cuda
from minima.random import Generator, get_rng_state, manual_seed
from minima.testing import check_backend, mock
from minima.trainer import Trainer

GPU, ROOT = "mock", Path(__file__).parent.parent


@pytest.fixture(scope="module")
def backend():
    mock.reset(devices=2)
    yield register(Cuda(mock, Pretended(mock.launch), GPU))
    del registry._by_name[GPU], registry._by_type[mock.ndarray]


@pytest.fixture
def card(backend):
    "The pretended card with nothing counted; its backend."
    mock.reset(devices=2)
    return backend


def quiet():
    "Nothing was copied since the last count, and nobody has waited."
    return not (mock.counts["copies"] or mock.counts["waits"])


def equal(there, here, rtol, where=f"{GPU}:0"):
    "Whether two tensors, or Nones, have the same numbers and dtype, and the first is on the card."
    equal_at(there, here, rtol, where)


# ---- the operators ----

LOOKING = {"getitem, by mask", "masked_select", "nonzero"}  # a shape that depends on numbers


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_operator_has_numpys_value_and_gradients_and_looks_at_nothing(row, index, card):
    for shapes, settings in row.cases():
        arrays, there = numbers(row.make, shapes), f"{GPU}:{index}"
        here, leaves = on("cpu", arrays), on(there, arrays)
        with kernels_off():
            expected = row.ours_with(settings)(*here)
        mock.counts.clear()
        found = row.ours_with(settings)(*leaves)
        assert quiet() or row.name in LOOKING
        equal(found, expected, 1e-12, there)
        if found.requires_grad:
            (g,) = numbers(normal, [found.shape])
            cotangent = Tensor(g.astype(expected.dtype), device=there)
            expected.backward(g.astype(expected.dtype))
            mock.counts.clear()
            found.backward(cotangent)
            assert quiet() or row.name in LOOKING
            for a, b in zip(leaves, here):
                equal(a.grad, b.grad, 1e-10, there)


@pytest.mark.parametrize("row", SMOOTH, ids=lambda row: row.name)
def test_second_derivatives_are_numpys(row, card):
    compare_second_derivatives(row, GPU, f"{GPU}:0")


def test_the_suite_for_backends_is_content(card):
    assert check_backend(GPU, verbose=False) == check_backend("cpu", verbose=False)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_numpys_with_all_their_options(name, card):
    rng = np.random.default_rng(0)
    inputs = [normal(rng, (4, 3)), rng.uniform(0.1, 0.9, (4, 3)), np.array([0, 1, 2, 1])]
    inputs += [rng.random((4, 3)) < 0.5, np.array([0.5, 1.0, 2.0])]
    found = []
    for device in ("cpu", GPU):
        z, p, *others = (Tensor(a, device=device) for a in inputs)
        z, p = z.requires_grad_(), p.requires_grad_()
        loss = LOSSES[name](nn.functional, z, p, *others)
        found.append([loss, *grad(loss, [z, p], allow_unused=True)])
    for ours, theirs in zip(*found, strict=True):
        equal(theirs, ours, 1e-12)


def test_ignored_labels_are_ignored_where_nobody_looks_at_them(card):
    z, labels = np.random.default_rng(0).normal(size=(4, 3)), np.array([0, -100, 2, 1])
    found = []
    for device in ("cpu", GPU):
        x = Tensor(z, device=device, requires_grad=True)
        loss = nn.functional.cross_entropy(x, Tensor(labels, device=device))
        loss.backward()
        found.append((loss, x.grad))
    for here, there in zip(*found):
        equal(there, here, 1e-12)


# ---- layers, optimizers, training ----


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name, shape", LAYERS)
def test_layers_are_numpys_and_look_at_nothing(name, shape, training, card):
    x = np.random.default_rng(0).normal(size=shape)
    (g,), found = numbers(normal, [LAYER_ROWS[name].make(nn).double()(Tensor(x)).shape]), []
    for device in ("cpu", GPU):
        manual_seed(0)
        layer = LAYER_ROWS[name].make(nn).double().train(training).to(device)
        leaf, upstream = Tensor(x, device=device, requires_grad=True), Tensor(g, device=device)
        mock.counts.clear()
        y = layer(leaf)
        y.backward(upstream)
        assert quiet()
        states = [*layer.parameters(), *layer.buffers()]
        found.append([y, leaf.grad, *states, *(p.grad for p in layer.parameters())])
    for here, there in zip(*found, strict=True):
        equal(there, here, 1e-9)


def small_model():
    return nn.Sequential(
        nn.Linear(4, 8, bias=False, dtype="float64"), nn.BatchNorm1d(8, dtype="float64"), nn.ReLU(),
        nn.FusedDropoutLayerNorm(8, dropout=0.2).double(), nn.Dropout(0.3),
        nn.Linear(8, 3, dtype="float64"),
    )  # fmt: skip


def stepped(device, make, steps=3):
    "The state of a small model after some steps, and what was counted in the last ones."
    manual_seed(0)
    model, rng = small_model().to(device), np.random.default_rng(0)
    optimizer, loss_fn = make(model.parameters()), nn.CrossEntropyLoss()
    x = Tensor(rng.normal(size=(16, 4)), device=device)
    labels = Tensor(rng.integers(0, 3, 16), device=device)
    for _ in range(steps):
        mock.counts.clear()
        optimizer.zero_grad()
        loss_fn(model(x), labels).backward()
        optim.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if device != "cpu":
            assert quiet()
    return model.state_dict()


@pytest.mark.parametrize("optimizer, settings", SETTINGS, ids=label)
def test_a_step_of_any_optimizer_neither_copies_nor_waits(optimizer, settings, card):
    make = lambda params: optimizer(params, **settings)
    here, there = (stepped(device, make) for device in ("cpu", GPU))
    for name, value in here.items():
        equal(there[name], value, 1e-9)


@pytest.mark.parametrize("index", [0, 1])
def test_parameters_lie_side_by_side_and_are_updated_together(index, card):
    rng, launches = np.random.default_rng(0), {}
    for size in (3, 30):
        params = [
            Tensor(rng.normal(size=(4, 5)), device=f"{GPU}:{index}", requires_grad=True)
            for _ in range(size)
        ]
        optimizer = optim.Adam(params)
        for _ in range(4):
            for p in params:
                p.grad = p.detach() * 2
            mock.counts.clear()
            optimizer.step()
        launches[size] = mock.counts["launches"] - size  # one each brings a gradient home
        assert quiet()
    assert launches[3] == launches[30]


@pytest.mark.parametrize("pin", [None, GPU])
def test_a_trainer_trains_there_as_on_the_cpu(pin, card, tmp_path):
    found, rng = [], np.random.default_rng(0)
    x, y = rng.normal(size=(20, 4)), rng.integers(0, 3, 20)
    dataset = data.TensorDataset(Tensor(x), Tensor(y))
    for device in ("cpu", GPU):
        manual_seed(0)
        model = small_model()
        loader = data.DataLoader(dataset, 5, shuffle=True, pin_memory=pin)
        trainer = Trainer(
            model, loader, [(Tensor(x), Tensor(y))], 2, device=device,
            optimizers=optim.Adam(model.parameters(), lr=0.01), progress_bar=False, lint=False,
        )  # fmt: skip
        trainer.fit()
        trainer.load_checkpoint(trainer.save_checkpoint(tmp_path / device))
        trainer.fit("1ep")
        assert {backend_of(t.array).name for t in model.state_dict().values()} == {device}
        found.append(trainer.history["loss"] + trainer.history["eval_loss"])
    np.testing.assert_allclose(*found, rtol=1e-9)


# ---- halves ----


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_halves_are_as_exact_as_on_the_cpu(row, dtype, card):
    shapes, settings = row.cases()[0]
    arrays = [a.astype("float32") if a.dtype.kind == "f" else a for a in numbers(row.make, shapes)]
    found = []
    for device in ("cpu", GPU):
        leaves = [Tensor(a, device=device) for a in arrays]
        leaves = [t.to(dtype) if t.dtype == "float32" else t for t in leaves]
        with kernels_off():
            found.append(row.ours_with(settings)(*leaves))
    here, there = found
    assert here.dtype == there.dtype
    roundings = 4 if row.name == "linear, and a bend" else 1  # of the product, the sum, and after
    ulp = 2.0 ** (-7 if dtype == "bfloat16" else -10)
    a, b = there.to("float32").numpy(), here.to("float32").numpy()
    np.testing.assert_allclose(a, b, roundings * ulp, 1e-3)


def test_what_is_squared_on_the_way_may_be_larger_than_a_half(card):
    x = Tensor(np.float16([[300.0, -300.0]]), device=GPU)
    assert nn.functional.layer_norm(x, (2,)).tolist() == [[1.0, -1.0]]


# ---- places ----


def test_nothing_moves_unasked_between_devices(card):
    here, there, other = (Tensor([1.0], device=d) for d in ("cpu", GPU, f"{GPU}:1"))
    for a, b in ((here, there), (there, here), (there, other), (other, there)):
        with pytest.raises(RuntimeError, match=r"multiply got arrays on \w+(:\d)? and"):
            a * b
    with pytest.raises(TypeError, match=r"on mock:0.*\.numpy\(\)"):
        np.asarray(there)
    assert there.numpy().tolist() == [1.0]


def test_gradients_follow_back_from_device_to_device(card):
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x.to(GPU) * 3).to(f"{GPU}:1") ** 2
    y.to("cpu").backward([1.0, 10.0])
    assert y.device == f"{GPU}:1" and x.grad.device == "cpu" and x.grad.tolist() == [18.0, 360.0]
    p = Tensor([1.0], device=f"{GPU}:1", requires_grad=True)
    for _ in range(2):
        mock.cuda.Device(0).use()
        (p * 2).sum().backward()
    assert p.grad.tolist() == [4.0] and p.grad.device == f"{GPU}:1"


def test_a_device_that_the_machine_lacks_is_named_with_those_it_has(card):
    with pytest.raises(RuntimeError, match="no device 'mock:2': there is mock:0 to 1 here"):
        Tensor([1.0], device="mock:2")


@pytest.mark.parametrize("made_by", [lambda a: a, lambda a: Theirs(a), lambda a: a.inside])
@pytest.mark.parametrize("index", [0, 1])
def test_an_array_comes_in_any_dtype_to_any_card(made_by, index, card):
    with mock.cuda.Device(index if made_by(mock.ones(1)).__class__ is Theirs else 0):
        given = made_by(mock.asarray(np.float64([1.5, 2.5])))
    for dtype in (None, "float64", "float32", np.dtype("int8")):
        found = card.asarray(given, dtype, index)
        assert found.device.id == index and found.dtype == (dtype or "float64")
        assert found.inside.tolist() == [1.5, 2.5] if dtype != np.int8 else [1, 2]
    assert mock.cuda.runtime.getDevice() == 0


def test_only_memory_that_is_locked_and_in_order_is_fetched_as_it_is(card):
    pinned = card.pinned(np.arange(16.0).reshape(4, 4))
    assert card.door._is_pinned(pinned) and card.door._is_pinned(pinned[1:])
    for other in (pinned[:, ::2], pinned.T, pinned.copy(), np.ones(3), np.frombuffer(b"12345678")):
        assert not card.door._is_pinned(other)
        np.testing.assert_array_equal(card.asarray(other).inside, other)


def test_the_namespace_is_cupys_by_name_and_copies_as_it_does(card):
    assert repr(card) == f"Backend({GPU!r}, minima.testing.mock)"
    a = mock.ones(2)
    assert card.xp.astype(a, "float64") is not a and card.xp.astype(a, "float64", copy=False) is a
    assert card.xp.astype(a, "bfloat16").dtype == "bfloat16"


def test_who_takes_halves_says_so_or_rounds_once(card):
    kernels = Kernels()
    rule = lambda xp, a: a
    for name, takes in (("layer_norm", False), ("exp", True)):
        rule.__name__ = name
        read, narrow = card.reading(rule, kernels)
        assert (np.dtype("float16") in narrow) is not takes and np.dtype("int8") in narrow
    for takes in (False, True):
        kernel = kernels.register(GPU)(lambda xp, a: a)
        kernel.takes_halves = takes
        assert (np.dtype("float16") in card.reading(rule, kernels)[1]) is not takes
    del kernel.takes_halves
    assert np.dtype("float16") in card.reading(rule, kernels)[1]


def test_of_one_card_there_is_only_one(monkeypatch):
    mock.reset(devices=1)
    one = Cuda(mock, Pretended(mock.launch), "single")
    monkeypatch.setitem(registry._by_name, "single", one)
    with pytest.raises(RuntimeError, match="no device 'single:3': there is only single:0 here"):
        Tensor([1.0], device="single:3")


def test_small_numbers_go_along_with_a_launch_and_large_ones_by_pinned_memory(card):
    door, rng = card.door, np.random.default_rng(0)
    for a in (np.uint64([2**63 + 5, 7]), np.float64(3.5), np.arange(63).astype("int8"), True):
        assert card.asarray(a).inside.tolist() == np.asarray(a).tolist()
    assert not mock.counts["copies"]
    for a in (rng.normal(size=(5, 7)), np.zeros((0, 3)), rng.normal(size=(6, 6)).T):
        np.testing.assert_array_equal(card.asarray(a).inside, a, strict=True)
    assert mock.counts["copies"] == 2 and not mock.counts["waits"]
    pinned = card.pinned(rng.normal(size=(9, 9)))
    card.asarray(pinned)
    assert door.under_way[-1][1] is pinned and len(door.under_way) == 1


def test_a_loader_puts_its_batches_where_the_card_fetches_them(card):
    x = np.arange(40.0).reshape(20, 2)
    for prefetch in (0, 2):
        loader = data.DataLoader(
            data.TensorDataset(Tensor(x)), 5, pin_memory=GPU, prefetch=prefetch
        )
        found = [batch for (batch,) in loader]
        assert all(card.door._is_pinned(t.numpy()) for t in found)
        np.testing.assert_array_equal(np.concatenate([t.numpy() for t in found]), x)
        mock.counts.clear()
        assert found[0].to(GPU).device == f"{GPU}:0" and not mock.counts["waits"]


def test_draws_are_the_same_on_every_device(card):
    drop, x, found = nn.Dropout(0.5), np.ones((40, 3)), []
    for device in ("cpu", GPU, f"{GPU}:1"):
        generator = manual_seed(3)
        found.append(drop(Tensor(x, device=device)).tolist())
        assert generator.get_state() == {"seed": 3, "offset": 1}
    assert found[0] == found[1] == found[2]


def test_what_is_drawn_for_one_device_changes_nothing_for_another(card):
    x, alone = np.ones((40, 3)), {}
    for device in ("cpu", GPU, f"{GPU}:1"):
        drop = nn.Dropout(0.5, generator=Generator(3))
        alone[device] = [drop(Tensor(x, device=device)).tolist() for _ in range(3)]
    drops = {device: nn.Dropout(0.5, generator=Generator(3)) for device in alone}
    together = {device: [] for device in alone}
    for _ in range(3):
        for device, drop in drops.items():
            together[device].append(drop(Tensor(x, device=device)).tolist())
    assert together == alone and alone["cpu"] == alone[GPU] == alone[f"{GPU}:1"]


def test_training_begun_on_the_cpu_goes_on_on_the_card_with_the_same_draws(card, tmp_path):
    rng = np.random.default_rng(0)
    dataset = data.TensorDataset(Tensor(rng.normal(size=(20, 4))), Tensor(rng.integers(0, 3, 20)))

    def trainer(device):
        model = small_model()
        loader = data.DataLoader(dataset, 5, shuffle=True)
        adam = optim.Adam(model.parameters(), lr=0.01)
        quiet = dict(progress_bar=False, lint=False)
        return Trainer(model, loader, None, 1, device=device, optimizers=adam, **quiet)

    manual_seed(0)
    begun = trainer("cpu")
    begun.fit()
    path, state = begun.save_checkpoint(tmp_path / "begun"), get_rng_state()
    begun.fit("1ep")
    manual_seed(99)
    moved = trainer(GPU)
    moved.load_checkpoint(path)
    assert get_rng_state() == state
    moved.fit("1ep")
    here, there = begun.history["loss"], moved.history["loss"]
    np.testing.assert_allclose(here[-4:], there[-4:], rtol=1e-9)
    for a, b in zip(begun.state.model.parameters(), moved.state.model.parameters(), strict=True):
        equal(b, a, 1e-9)


# ---- many arrays at once ----

JOINED = {
    "concat": lambda xp, arrays: xp.concat(arrays),
    "concatenate, another axis": lambda xp, arrays: xp.concatenate(arrays, axis=1),
    "stack": lambda xp, arrays: xp.stack(arrays, axis=1),
}


@pytest.mark.parametrize("count", [1, 8, 9, 64, 65, 100])
@pytest.mark.parametrize("name", JOINED)
def test_however_many_arrays_are_joined_nothing_is_copied_to_the_card(name, count, card):
    arrays = [*np.random.default_rng(0).normal(size=(count, 2, 3))]
    there = [mock._wrap(a) for a in arrays]
    found = JOINED[name](card.xp, there)
    assert quiet()
    np.testing.assert_array_equal(found.inside, JOINED[name](np, arrays), strict=True)
    if count > 8:  # of which CuPy by itself copies the addresses
        JOINED[name](mock, there)
        assert mock.counts["copies"] == 1


# ---- other libraries on the card ----


class Theirs:
    "An array of another library on the card: it shows where its memory is."

    def __init__(self, array):
        self.array = array
        self.__cuda_array_interface__ = array.__cuda_array_interface__

    def __dlpack_device__(self):
        return 2, 0


def test_memory_on_the_card_is_shared_with_other_libraries(card, monkeypatch):
    monkeypatch.setitem(registry._by_name, "cuda", card)
    mine = Tensor(np.arange(6.0).reshape(2, 3), device=GPU)
    mock.counts.clear()
    assert mine.__dlpack_device__() == (2, 0)
    for again in (Tensor(Theirs(mine)), from_dlpack(mine)):
        again[0, 0] = 9.0
        assert np.shares_memory(again.array.inside, mine.array.inside) and quiet()
    assert hasattr(mine, "__cuda_array_interface__")
    assert not hasattr(Tensor([1.0]), "__cuda_array_interface__")


# ---- products ----

SHAPES = [
    ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((1, 3, 4), (4, 5)),
    ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((2, 0, 4), (4, 5)), ((1, 1), (1, 1)), ((3, 1), (1, 5)),
    ((2, 2, 3, 4), (2, 2, 4, 5)), ((2, 3, 4), (1, 4, 1)),
]  # fmt: skip
LAYOUTS = {
    "as it is": lambda a: a,
    "turned": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "a part": lambda a: np.pad(a, [(0, 2)] * a.ndim)[tuple(slice(n) for n in a.shape)],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "heads": lambda a: np.ascontiguousarray(a.swapaxes(0, -2)).swapaxes(0, -2),
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
}


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("a, b", SHAPES)
def test_products_are_numpys_however_matrices_lie(a, b, left, right, card):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=a), rng.normal(size=b)
    a, b = (LAYOUTS[how](x) if x.ndim > 1 else x for how, x in ((left, a), (right, b)))
    found = card.xp.matmul(mock._wrap(a), mock._wrap(b)).inside
    np.testing.assert_allclose(found, a @ b, rtol=1e-12, strict=True)


@pytest.mark.parametrize("dtype", [*_TYPES, "int64"])
def test_products_of_every_dtype_are_summed_wide(dtype, card):
    dtype = np.dtype(registry.as_dtype(dtype))
    a, b = np.full((2, 3, 3000), 1, dtype), np.full((3000, 2), 1, dtype)
    found = card.xp.matmul(mock._wrap(a), mock._wrap(b)).inside
    assert found.dtype == dtype and (found == np.float32(3000).astype(dtype)).all()


def test_a_matrix_that_cublas_can_read_is_not_copied(card):
    a = mock.asarray(np.ones((4, 6)))
    for x in (a, a.T, a[:, :3], a[1:].T, a[:1], mock.asarray(np.ones((3, 4, 6)))[1:]):
        mock.counts.clear()
        card.xp.matmul(x, mock.swapaxes(x, -1, -2))
        assert mock.counts["launches"] == 1
    assert layout(a[:, ::2]) is None and distance(mock.zeros((2, 3, 4, 5))[:, ::2]) is None


def test_stacks_and_sizes_that_do_not_fit_are_refused(card):
    with pytest.raises(ValueError, match="inner sizes differ, 4 and 3"):
        card.xp.matmul(mock.zeros((2, 4)), mock.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"stacks of \(2,\) and \(3,\)"):
        card.xp.matmul(mock.zeros((2, 2, 2)), mock.zeros((3, 2, 2)))


def test_products_of_both_kinds_of_halves_are_float32_as_on_the_cpu(card):
    a, b = (Tensor(np.ones((2, 2)), device=GPU).to(d) for d in ("float16", "bfloat16"))
    assert card.xp.matmul(a.array, b.array).dtype == (a @ b).dtype == "float32"


WORD, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
DOCUMENTED = {  # in cublas_api.h
    "cublasCreate_v2": [WORD],  # cublasHandle_t *
    "cublasSetStream_v2": [WORD, WORD],  # a handle, a cudaStream_t
    "cublasSetWorkspace_v2": [WORD, WORD, ctypes.c_size_t],
    "cublasSetMathMode": [WORD, INT],
    "cublasGemmStridedBatchedEx": [
        WORD, INT, INT, INT, INT, INT,  # handle, transa, transb, m, n, k
        WORD, WORD, INT, INT, LONG, WORD, INT, INT, LONG,  # alpha; A, its type, lda, stride; B
        WORD, WORD, INT, INT, LONG,  # beta; C, its type, ldc, stride
        INT, INT, INT,  # batchCount, computeType, algo
    ],
}  # fmt: skip


def test_cublas_is_called_as_it_is_documented(card):
    assert SIGNATURES == DOCUMENTED
    assert _TYPES == {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
    library = Pretended(mock.launch)
    assert library.cublasSetMathMode(1, 16) == 0
    for args in ((1, 1.0), (1,), (1, 16, 0)):
        with pytest.raises((TypeError, ValueError)):
            library.cublasSetMathMode(*args)
    with pytest.raises(ValueError, match="the leading size 2 is less than 3 rows"):
        library.cublasGemmStridedBatchedEx(
            1, 0, 0, 3, 3, 3, 0, 0, 0, 2, 9, 0, 0, 3, 9, 0, 0, 0, 3, 9, 1, 68, -1
        )


STRIPE, TABLE = np.zeros(3), np.zeros((4, 6))


@pytest.mark.parametrize("a, lies", [
    (TABLE, (0, 6)), (TABLE.T, (1, 6)), (TABLE[:, 1:3], (0, 6)), (TABLE[:, :2].T, (1, 6)),
    (TABLE[:, ::2], None), (TABLE[::2, ::2], None), (TABLE[::-1], None), (TABLE[:, ::-1], None),
    (TABLE[::2, :2], (0, 12)), (TABLE[::2, :2].T, (1, 12)), (TABLE[:, ::6], (0, 6)),
    (TABLE[::4, :3], (0, 3)), (TABLE[::4, ::2], (1, 2)), (TABLE[:1, :1], (0, 1)),
    (np.broadcast_to(STRIPE, (1, 3)), (0, 3)), (np.broadcast_to(STRIPE, (2, 3)), None),
    (np.broadcast_to(STRIPE, (1, 3)).T, (0, 1)), (np.broadcast_to(STRIPE[:, None], (3, 2)), None),
    (TABLE[:, :0], (0, 6)), (np.zeros((2, 3, 4)), (0, 4)),
])  # fmt: skip
def test_how_a_matrix_lies(a, lies):
    assert layout(a) == lies


STACKS = np.zeros((3, 4, 5, 6, 7))


@pytest.mark.parametrize("a, far", [
    (TABLE, 0), (STACKS[0, 0], 42), (STACKS[0], 42), (STACKS, 42), (STACKS[:, :, :1], 210),
    (STACKS[:, :1], None), (STACKS[:, :1, :1], 840), (STACKS[:1, :, :1], 210),
    (STACKS[0, 0, ::2], 84), (STACKS[0, ::2], None), (STACKS[::2, 0, 0], 1680),
    (STACKS[0, 0, ::-1], None), (STACKS[0, 0, 0][None], 0),
    (np.broadcast_to(TABLE, (5, 4, 6)), 0), (np.broadcast_to(TABLE, (2, 5, 4, 6)), 0),
    (np.broadcast_to(STACKS[0, 0][:, None], (5, 2, 6, 7)), None), (STACKS.swapaxes(2, 3), None),
])  # fmt: skip
def test_how_far_it_is_from_matrix_to_matrix(a, far):
    assert distance(a) == far


def test_functions_of_cublas_are_declared(card):
    library = Pretended(mock.launch)
    assert Cublas(library, mock).library is library
    for name, types in SIGNATURES.items():
        function = getattr(library, name)
        assert function.argtypes is types and function.restype is ctypes.c_int


def test_a_handle_is_made_once_for_a_stream_with_a_workspace_of_its_own(card):
    library, asked = Pretended(mock.launch), []
    steps = ["cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSetMathMode"]
    for name in steps:
        setattr(library, name, lambda *args, name=name: asked.append((name, *args[1:])) or 0)
    ours, x = Cublas(library, mock), mock.ones((2, 2))
    streams = [mock.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams * 2:
        ours.matmul(x, x)
        with stream:
            ours.matmul(x, x)
    assert [name for name, *_ in asked] == steps * 3 and len(ours.handles) == 3
    assert [args for _, *args in asked[1::4]] == [[0], [streams[0].ptr], [streams[1].ptr]]
    spaces = [(space.data.ptr, space.nbytes) for _, space in ours.handles.values()]
    assert [tuple(args) for _, *args in asked[2::4]] == spaces and spaces[0][1] == 32 << 20
    assert [args for _, *args in asked[3::4]] == [[16]] * 3  # halves are added up in float32
    library.cublasGemmStridedBatchedEx = lambda *args: 13
    with pytest.raises(RuntimeError, match="cublasGemmStridedBatchedEx failed with status 13"):
        ours.matmul(x, x)


# ---- what may be missing ----


def machine(driver=13000, needed=13020, count=1, version="14.2.0"):
    "What CuPy answers on some machine."
    runtime = SimpleNamespace(
        driverGetVersion=lambda: driver, runtimeGetVersion=lambda: needed,
        getDeviceCount=lambda: count,
    )  # fmt: skip
    cuda = SimpleNamespace(runtime=runtime, is_available=lambda: count > 0)
    return SimpleNamespace(__version__=version, cuda=cuda)


@pytest.mark.parametrize("facts, said", [
    (dict(driver=0), "CuPy 14.2.0 is installed, but this machine has no NVIDIA driver; "
                     "use device='cpu'"),
    (dict(driver=12090, needed=13000), "CuPy 14.2.0 is installed for CUDA 13.0, but the NVIDIA "
        "driver is for CUDA 12.9: update the driver, or pip install \"minima[cuda12]\""),
    (dict(driver=12040), "CuPy 14.2.0 is installed for CUDA 13.2, but the NVIDIA driver is for "
                         "CUDA 12.4: update the driver, or pip install \"minima[cuda12]\""),
    (dict(version="13.6.0"), "CuPy 13.6.0 is installed, but minima needs 14 or later: "
                              'pip install "minima[cuda13]"'),
    (dict(count=0), "CuPy 14.2.0 is installed, and a driver, but no CUDA device; "
                    "use device='cpu'"),
])  # fmt: skip
def test_a_machine_that_cannot_compute_says_why_in_a_line(facts, said, monkeypatch):
    monkeypatch.setattr(cards, "find_cupy", lambda: machine(**facts))
    assert cards.available() == (False, said)


@pytest.mark.parametrize("driver, needed", [(13000, 13020), (13020, 13000), (14000, 13000)])
def test_a_machine_that_can_compute_is_believed(driver, needed, monkeypatch):
    here, loaded = machine(driver, needed), []
    assert cards.check(here) is here
    monkeypatch.setattr(cards, "find_cupy", lambda: here)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(cards.ctypes, "CDLL", lambda path: loaded.append(path) or path)
    assert cards.available() == (True, "")
    assert loaded == ["libnvrtc.so.13", "libcublas.so.13"]
    where = SimpleNamespace(load_nvidia_dynamic_lib=lambda n: SimpleNamespace(abs_path=f"/{n}"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", where)
    assert cards.library("cublas", here) == "/cublas"


@pytest.mark.parametrize("missing", ["nvrtc", "cublas"])
def test_a_machine_without_a_library_cannot_compute(missing, monkeypatch):
    def load(path):
        if missing in path:
            raise OSError(path)

    monkeypatch.setattr(cards, "find_cupy", lambda: machine(needed=13000))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(cards.ctypes, "CDLL", load)
    can, why = cards.available()
    assert not can and why == (
        f'CUDA\'s library {missing!r} is missing: pip install "cupy-cuda13x[ctk]"'
    )


def entry_point(name="cuda"):
    "The entry point as an installation has it."
    entry = importlib.metadata.EntryPoint(name, "minima.gpu:backend", "minima.backends")
    return {name: entry}


def test_without_cupy_the_device_says_what_to_install(monkeypatch):
    monkeypatch.setattr(registry, "_plug_ins", entry_point)
    monkeypatch.setitem(sys.modules, "cupy", None)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"'cuda' needs CuPy: pip install \"minima\[cuda13\]"
        ):
            Tensor([1.0], device="cuda")
    assert cards.available()[0] is False


def test_a_cupy_that_is_broken_says_what_it_lacks(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock")

    monkeypatch.setattr(cards, "import_module", broken)
    with pytest.raises(RuntimeError, match="lacks 'fastrlock'"):
        cards.find_cupy()
    monkeypatch.setattr(cards, "import_module", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cards.find_cupy()


@pytest.mark.parametrize("name", ["nvrtc", "cublas"])
@pytest.mark.parametrize("where", ["pathfinder", "linker"])
def test_libraries_of_cuda_that_are_missing_are_named(name, where, monkeypatch):
    def nowhere(name):
        raise RuntimeError("not found")

    if where == "pathfinder":
        found = SimpleNamespace(load_nvidia_dynamic_lib=nowhere)
        monkeypatch.setattr(cards, "import_module", lambda name: found)
    else:
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
        monkeypatch.setattr(cards.ctypes, "CDLL", lambda path: (_ for _ in ()).throw(OSError(path)))
    with pytest.raises(RuntimeError, match=rf"{name}.*pip install \"cupy-cuda13x\[ctk\]\""):
        cards.library(name, machine())


def test_a_foreign_array_does_not_ask_for_cuda_again_and_again(monkeypatch):
    asked = []

    class Entry:
        def load(self):
            asked.append(1)
            raise RuntimeError("device 'cuda' needs CuPy")

    class Foreign:
        def __dlpack__(self):
            pass

        def __array__(self, dtype=None, copy=None):
            return np.ones(2)

    monkeypatch.setattr(registry, "_plug_ins", lambda: {"cuda": Entry()})
    monkeypatch.setattr(registry, "_in_vain", set())
    assert Tensor(Foreign()).tolist() == [1.0, 1.0] == Tensor(Foreign()).tolist()
    assert len(asked) == 1
    with pytest.raises(RuntimeError, match="needs CuPy"):
        get_backend("cuda")


# ---- the pretended CuPy is as strict as the real one ----

REFUSED = {
    "an array of NumPy's": lambda x: x + np.ones(2),
    "an array of NumPy's as an index": lambda x: x[np.array([0])],
    "a list": lambda x: mock.add(x, np.ones(2)),
    "an array of NumPy's as a value": lambda x: x.__setitem__(0, np.ones(())),
    "np.asarray": np.asarray,
    "np.exp": np.exp,
    "tolist": lambda x: x.tolist(),
    "a name that CuPy lacks": lambda x: mock.vecdot(x, x),
    "an array of another device": lambda x: x + mock.cuda.Device(1).__enter__() and x + x,
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_pretended_cupy_refuses(name, card):
    with pytest.raises((TypeError, AttributeError, ValueError)):
        REFUSED[name](mock.ones(2))


WAITING = {
    "item": lambda x: x.item(), "get": lambda x: x.get(), "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x[0]), "a mask": lambda x: x[x > 0], "nonzero": mock.nonzero,
}  # fmt: skip


@pytest.mark.parametrize("name", WAITING)
def test_the_pretended_cupy_counts_waits_and_refuses_them_in_a_capture(name, card):
    x = mock.ones(1)
    assert not mock.counts["waits"]
    WAITING[name](x)
    assert mock.counts["waits"] == 1
    with mock.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="Capture"):
            WAITING[name](x)
        stream.end_capture()


def test_what_nobody_has_written_is_nan(card):
    stream, x = mock.cuda.Stream(non_blocking=True), mock.ones(3)
    assert np.isnan(mock.empty(2).inside).all() and np.isnan(mock.empty_like(x).inside).all()
    with stream:
        stream.begin_capture()
        y, view = x * 2, x[1:]
        x += 1
        graph = stream.end_capture()
    assert np.isnan(y.inside).all() and view.base is x and x.inside.tolist() == [1.0] * 3
    graph.launch()
    assert y.inside.tolist() == [2.0] * 3 == x.inside.tolist()


# ---- and the real CuPy has what is asked of it ----


@pytest.fixture
def cupy():
    if not find_spec("cupy"):
        pytest.skip("cupy is not installed, so its names cannot be looked up")
    return importlib.import_module("cupy")


def test_the_list_of_names_that_cupy_lacks_is_right(cupy):
    theirs = {n for n in dir(np) if n[0] != "_" and inspect.isroutine(getattr(np, n))}
    theirs |= {n for n, f in vars(np).items() if isinstance(f, np.ufunc)}
    assert {n for n in theirs if not hasattr(cupy, n)} <= mock.LACKING
    assert not [n for n in mock.LACKING if hasattr(cupy, n)]
    for name in mock._NO_METHODS - {"tolist"}:
        assert not hasattr(cupy.ndarray, name)


def test_every_name_and_setting_that_rules_use_exists_in_cupy(cupy):
    asked = {}
    for source in sources_of_rules().values():
        for call in (n for rule in rules(source) for n in ast.walk(rule)):
            if isinstance(call, ast.Call) and (name := path_in_xp(call.func)):
                asked.setdefault(name, set()).update(k.arg for k in call.keywords)
    assert len(asked) > 60
    for name, settings in asked.items():
        function = getattr(cupy, name)
        if isinstance(function, cupy.ufunc):
            assert settings <= {"out", "where", "dtype", "casting", "axis"}, name
        elif settings:
            known = inspect.signature(function).parameters
            free = any(p.kind is p.VAR_KEYWORD for p in known.values())
            assert free or settings <= known.keys(), (name, settings - known.keys())


SPEAKING_TO_CUPY = [*(ROOT / "minima" / "gpu").glob("*.py"), ROOT / "minima/kernels/launches.py"]
SPEAKING_TO_CUPY += [ROOT / "benchmarks" / "gpu.py"]
OF_OBJECTS = """ndarray.data ndarray.device ndarray.get ndarray.flags cuda.MemoryPointer.ptr
    cuda.MemoryPointer.copy_from_host_async cuda.Graph.launch cuda.Stream.begin_capture
    cuda.Stream.end_capture cuda.Stream.record cuda.Stream.synchronize cuda.Stream.null
    cuda.Event.record cuda.Event.synchronize cuda.Event.done cuda.MemoryPool.malloc
    cuda.Device.use cuda.Device.id cuda.Device.synchronize cuda.Device.attributes RawModule
    RawModule.get_function""".split()  # which no module names
HANDED_OVER = {  # by name, what it must take, in this order
    "ndarray.astype": "dtype copy", "array": "dtype copy order", "concatenate": "tup axis",
    "expand_dims": "a axis", "zeros": "shape dtype", "full": "shape fill_value dtype",
    "RawKernel": "code name", "RawKernel.__call__": "grid block args",
    "RawModule": "code options name_expressions", "cuda.Stream": "non_blocking",
    "cuda.Graph.launch": "stream", "cuda.Event.record": "stream", "cuda.Device": "device",
    "cuda.MemoryPointer.copy_from_host_async": "mem size stream",
    "cuda.get_elapsed_time": "start_event end_event", "cuda.using_allocator": "allocator",
    "cuda.alloc_pinned_memory": "size", "ndarray.__dlpack__": "stream max_version",
}  # fmt: skip


def asked_of_cupy(source):
    "The names that some code looks up in CuPy, as `cuda.Stream`, or in its `cuda`."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            _, found, name = f".{ast.unparse(node)}".rpartition("cupy.")
            name = name if found else ast.unparse(node)
            if re.fullmatch(r"[\w.]+", name) and (found or name.startswith("cuda.")):
                yield name


def look_up(cupy, name):
    for part in name.split("."):
        cupy = getattr(cupy, part)
    return cupy


def test_what_the_backend_calls_exists_in_cupy(cupy):
    asked = {name for p in SPEAKING_TO_CUPY for name in asked_of_cupy(p.read_text("utf-8"))}
    ours = {"cuda.jit", "cuda.pathfinder", "__version__", "__name__"}  # numba's, NVIDIA's
    assert {"cuda.runtime.getDevice", "cuda.Stream", "RawKernel", "cuda.Event"} <= asked
    for name in {*asked, *OF_OBJECTS} - ours:
        look_up(cupy, name)
    assert cupy.ndarray.__weakrefoffset__  # captured steps hold arrays weakly


@pytest.mark.parametrize("name", HANDED_OVER)
def test_what_cupy_is_handed_it_takes(name, cupy):
    thing = look_up(cupy, name)
    try:
        said = str(inspect.signature(thing))
        assert "*args" not in said
    except (AssertionError, ValueError):  # it is compiled, and says so in its docstring
        said = thing.__doc__
    words = re.findall(r"\w+", said.partition("\n\n")[0])
    places = [words.index(word) for word in HANDED_OVER[name].split()]
    assert places == sorted(places)


def test_with_cupy_and_no_gpu_the_error_is_ours(cupy):
    if cupy.cuda.is_available():
        assert cards.check(cupy) is cupy
    else:
        can, why = cards.available()
        assert not can and "cudaError" not in why and "\n" not in why


def test_the_kernel_that_brings_small_numbers_compiles(cupy):
    nvrtc = importlib.import_module("cupy_backends.cuda.libs.nvrtc")
    try:
        nvrtc.getVersion()
    except (ImportError, RuntimeError):
        pytest.skip("NVRTC is not installed, so nothing can be compiled")
    program = nvrtc.createProgram(_PUT, "put.cu", (), ())
    nvrtc.compileProgram(program, ("--gpu-architecture=sm_80",))
    assert nvrtc.getCUBIN(program)


# ---- parameters side by side ----

UNEVEN = [(3, 4), (5,), (), (2, 3), (0, 2), (1, 7), (2,)]


def stepped_apart(device, kind, settings, dtype):
    "Parameters of uneven sizes after some steps with an optimizer, and the optimizer."
    rng, params = np.random.default_rng(0), []
    arrays = [[rng.normal(size=s).astype(dtype) for _ in range(5)] for s in UNEVEN]
    params = [Tensor(each[0], device=device, requires_grad=True) for each in arrays]
    optimizer = kind(params, **{"lr": 0.01} | settings)
    for step in range(1, 5):
        for p, each in zip(params, arrays):
            p.grad = Tensor(each[step], device=device)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind, settings", SETTINGS, ids=label)
def test_pieces_begin_where_packs_can_be_loaded_and_gaps_stay_zero(kind, settings, dtype, card):
    there, ours = stepped_apart(GPU, kind, settings, dtype)
    here, theirs = stepped_apart("cpu", kind, settings, dtype)
    for a, b in zip(there, here, strict=True):
        equal(a, b, 1e-12 if dtype == "float64" else 1e-5)
        for name, state in theirs.state[b].items():
            if hasattr(state, "shape"):
                assert ours.state[a][name].shape == state.shape
    for bundle in {*ours._bundles.of.values()}:
        starts = [piece.data.ptr - bundle.flat.data.ptr for piece in bundle.pieces]
        places = {start + i for start, p in zip(starts, bundle.pieces) for i in range(p.nbytes)}
        assert not any(start % 16 for start in starts) and not bundle.flat.nbytes % 16
        assert len(places) == sum(p.nbytes for p in bundle.pieces)  # none lies in another
        ((_, _, states),) = bundle.whole
        for long in (bundle.flat, bundle.gradient, *states.values()):
            assert long.nbytes == bundle.flat.nbytes
            rest = [b for i, b in enumerate(long.inside.tobytes()) if i not in places]
            assert not np.frombuffer(bytes(rest), dtype).any() and (rest or dtype == "float64")
