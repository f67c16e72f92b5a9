"Optimizers, step for step beside PyTorch; groups, books, and what can be told early."

import gc
import weakref

import numpy as np
import pytest

import minima.operators  # noqa: F401 - gives Tensors their methods
from minima import optim
from minima.autograd import Tensor, tensor
from minima.backend import backend_of
from minima.optim import SGD, AdaGrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSProp

SHAPES = [(), (3,), (1, 4), (5, 3), (2, 0)]
RTOL = {"float32": 1e-5, "float64": 1e-12}

SETTINGS = [
    (SGD, {}),
    (SGD, dict(lr=0)),
    (SGD, dict(lr=0.1)),
    (SGD, dict(lr=0.1, weight_decay=0.1)),
    (SGD, dict(lr=0.1, maximize=True, weight_decay=0.1)),
    (SGD, dict(lr=0.1, momentum=0.9)),
    (SGD, dict(lr=0.1, momentum=0.9, dampening=0.5)),
    (SGD, dict(lr=0.1, momentum=0.9, dampening=1, weight_decay=0.1)),
    (SGD, dict(lr=0.1, momentum=0.5, nesterov=True)),
    (SGD, dict(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, maximize=True)),
    (Adam, {}),
    (Adam, dict(lr=0.1)),
    (Adam, dict(lr=0.1, betas=(0.5, 0.9), eps=1e-3)),
    (Adam, dict(lr=0.1, betas=(0.0, 0.9))),
    (Adam, dict(lr=0.1, betas=(0.9, 0.0))),
    (Adam, dict(lr=0.1, weight_decay=0.1)),
    (Adam, dict(lr=0.1, amsgrad=True)),
    (Adam, dict(lr=0.1, amsgrad=True, maximize=True, weight_decay=0.1, betas=(0.5, 0.5))),
    (AdamW, {}),
    (AdamW, dict(lr=0.1)),
    (AdamW, dict(lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3)),
    (AdamW, dict(lr=0.1, weight_decay=0)),
    (AdamW, dict(lr=0.1, amsgrad=True, betas=(0.9, 0.6))),
    (AdamW, dict(lr=0.1, maximize=True)),
    (AdaGrad, {}),
    (AdaGrad, dict(lr=0.1, lr_decay=0.1)),
    (AdaGrad, dict(lr=0.1, weight_decay=0.1, initial_accumulator_value=0.5)),
    (AdaGrad, dict(lr=0.1, eps=0.1, maximize=True, weight_decay=0.1)),
    (RMSProp, {}),
    (RMSProp, dict(lr=0.1, alpha=0.5, eps=1e-3)),
    (RMSProp, dict(lr=0.1, weight_decay=0.1, maximize=True)),
    (RMSProp, dict(lr=0.01, momentum=0.9)),
    (RMSProp, dict(lr=0.01, centered=True)),
    (RMSProp, dict(lr=0.01, centered=True, momentum=0.5, alpha=0.9, weight_decay=0.1)),
    (NAdam, {}),
    (NAdam, dict(lr=0.1, betas=(0.5, 0.9), eps=1e-3)),
    (NAdam, dict(lr=0.1, weight_decay=0.1, momentum_decay=0.1)),
    (NAdam, dict(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, maximize=True)),
    (RAdam, {}),
    (RAdam, dict(lr=0.1, betas=(0.5, 0.9), eps=1e-3)),
    (RAdam, dict(lr=0.01, betas=(0.9, 0.6))),
    (RAdam, dict(lr=0.1, weight_decay=0.1)),
    (RAdam, dict(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True, maximize=True)),
]
OTHERS = """Optimizer LRScheduler StepLR MultiStepLR ExponentialLR LambdaLR LinearLR
    CosineAnnealingLR OneCycleLR ReduceLROnPlateau ChainedScheduler SequentialLR
    clip_grad_norm_ clip_grad_value_"""
PUBLIC = [SGD, Adam, AdamW, AdaGrad, RMSProp, NAdam, RAdam]


@pytest.fixture
def torch(torch):
    "PyTorch, with its default dtype such that NAdam's product of momenta is exact."
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(default)


def of_torch(torch, optimizer):
    "PyTorch's optimizer of the same name, which it may spell otherwise."
    spelling = {"AdaGrad": "Adagrad", "RMSProp": "RMSprop"}
    return getattr(torch.optim, spelling.get(optimizer.__name__, optimizer.__name__))


def label(value):
    "A row of a table, named."
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "defaults"
    return getattr(value, "__name__", str(value))


class Both:
    "The same parameters here and in torch, handed the same random gradients."

    def __init__(self, torch, dtype, seed=0, shapes=SHAPES):
        self.torch, self.rng = torch, np.random.default_rng(seed)
        arrays = [np.asarray(self.rng.normal(size=shape), dtype=dtype) for shape in shapes]
        self.ours = [tensor(a, requires_grad=True) for a in arrays]
        self.theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
        self.largest = [0.0] * len(arrays)

    def new_gradients(self, missing=0.2):
        "Random gradients of many sizes; some are None."
        for p, t in zip(self.ours, self.theirs):
            g = self.rng.normal(size=p.shape) * 10.0 ** self.rng.integers(-3, 3)
            g = None if self.rng.random() < missing else np.asarray(g, dtype=p.dtype)
            p.grad = None if g is None else tensor(g)
            t.grad = None if g is None else self.torch.tensor(g)

    def train(self, ours, theirs, steps=50):
        "Take `steps` steps with both, and compare after each."
        for _ in range(steps):
            self.new_gradients()
            ours.step()
            theirs.step()
            self.agree()

    def agree(self):
        "The parameters are equal, relative to how large they have been: a step may cancel digits."
        for i, (p, t) in enumerate(zip(self.ours, self.theirs)):
            expected, rtol = t.detach().numpy(), RTOL[p.dtype.name]
            assert p.dtype == expected.dtype
            self.largest[i] = np.abs(expected).max(initial=self.largest[i])
            np.testing.assert_allclose(p.array, expected, rtol=0, atol=rtol * self.largest[i])


# ---- the same steps as torch's ----


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("optimizer, settings", SETTINGS, ids=label)
def test_fifty_steps_are_those_of_torch(torch, optimizer, settings, dtype):
    both = Both(torch, dtype)
    theirs = of_torch(torch, optimizer)(both.theirs, **settings)
    both.train(optimizer(both.ours, **settings), theirs)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("optimizer, own, other", [
    (SGD, dict(lr=0.01, momentum=0.9), dict(weight_decay=0.5, dampening=0.1)),
    (SGD, dict(lr=0.01), dict(momentum=0.9, nesterov=True)),
    (Adam, dict(lr=0.01), dict(betas=(0.5, 0.6), eps=0.1)),
    (AdamW, dict(lr=0.01), dict(weight_decay=0.5)),
    (AdaGrad, dict(lr=0.01), dict(lr_decay=0.5, eps=0.1)),
    (RMSProp, dict(lr=0.01, momentum=0.5), dict(alpha=0.5, centered=True)),
    (NAdam, dict(lr=0.01), dict(betas=(0.5, 0.6), momentum_decay=0.1)),
    (RAdam, dict(lr=0.01), dict(betas=(0.5, 0.9), weight_decay=0.5)),
], ids=label)  # fmt: skip
def test_groups_with_their_own_settings_step_as_in_torch(torch, optimizer, own, other, dtype):
    both = Both(torch, dtype)

    def groups(params):
        return [{"params": params[:2], **own}, {"params": params[2], **other}]

    ours = optimizer(groups(both.ours), lr=0.1)
    theirs = of_torch(torch, optimizer)(groups(both.theirs), lr=0.1)
    for o, params in ((ours, both.ours), (theirs, both.theirs)):
        o.add_param_group({"params": params[3:], "lr": 0.02})
    both.train(ours, theirs, 20)
    for o in (ours, theirs):
        o.param_groups[1]["lr"] = 0.5
    both.train(ours, theirs, 20)
    names = {"foreach", "capturable", "differentiable", "fused", "params"}
    for mine, torches in zip(ours.param_groups, theirs.param_groups):
        for name in mine.keys() - names:
            assert mine[name] == torches[name]


def test_nadams_product_of_momenta_is_kept_in_float64_whatever_torchs_is(torch):
    torch.set_default_dtype(torch.float32)
    both = Both(torch, "float32")
    ours, theirs = NAdam(both.ours, lr=0.1), torch.optim.NAdam(both.theirs, lr=0.1)
    both.train(ours, theirs)
    products = [state["mu_product"] for state in ours.state.values()]
    assert all(type(product) is float and 0 < product < 0.1 for product in products)


def test_options_that_need_memory_may_be_set_in_the_midst():
    for optimizer, settings in [
        (Adam, {"amsgrad": True}), (RMSProp, {"momentum": 0.9}), (RMSProp, {"centered": True})
    ]:  # fmt: skip
        o = trained(optimizer)
        before = o.param_groups[0]["params"][0].tolist()
        o.param_groups[0].update(settings)
        o.step()
        assert o.param_groups[0]["params"][0].tolist() != before


def test_a_variance_below_zero_counts_as_none():
    p = tensor([0.0], requires_grad=True)
    o = RMSProp([p], lr=1e-9, centered=True, alpha=0.3)
    p.grad = tensor([1.1])
    for _ in range(50):  # its square and the mean's come apart by a rounding
        o.step()
        assert np.isfinite(p.array).all()


def test_radam_steps_plainly_until_there_is_a_variance():
    p = tensor([0.0], dtype="float64", requires_grad=True)
    o, lengths = RAdam([p], lr=0.01), []
    for _ in range(7):
        p.grad, before = tensor([100.0], dtype="float64"), p.item()
        o.step()
        lengths.append(before - p.item())
    assert lengths[:5] == pytest.approx([1.0] * 5) and max(lengths[5:]) < 0.01


def test_settings_may_change_between_steps_as_in_torch(torch):
    both = Both(torch, "float64")
    ours, theirs = SGD(both.ours, lr=0.1), torch.optim.SGD(both.theirs, lr=0.1)
    for settings in ({}, {"momentum": 0.9}, {"dampening": 0.3, "weight_decay": 0.1}, {"lr": 0.01}):
        ours.param_groups[0].update(settings)
        theirs.param_groups[0].update(settings)
        both.train(ours, theirs, 5)


# ---- the array, and what is remembered ----


@pytest.mark.parametrize("optimizer, settings", [
    (SGD, dict(lr=0.1, weight_decay=0.1)),
    (SGD, dict(lr=0.1, momentum=0.9, nesterov=True)),
    (Adam, dict(lr=0.1, weight_decay=0.1)),
    (AdamW, dict(lr=0.1, amsgrad=True)),
    (AdaGrad, dict(lr=0.1, lr_decay=0.1)),
    (RMSProp, dict(lr=0.1, momentum=0.9, eps=0.1, centered=True)),
    (NAdam, dict(lr=0.1, weight_decay=0.1)),
    (RAdam, dict(lr=0.1)),
], ids=label)  # fmt: skip
class TestTheArray:
    @pytest.mark.parametrize("dtype", ["float16", *RTOL])
    def test_stays_the_same_object_with_its_dtype(self, optimizer, settings, dtype):
        p = tensor(np.ones((2, 3)), dtype=dtype, requires_grad=True)
        o, array = optimizer([p], **settings), p.array
        for _ in range(3):
            p.grad = tensor(np.ones((2, 3)), dtype=dtype)
            gradient = p.grad.array.copy()
            o.step()
            assert p.array is array and p.dtype == dtype and (array != 1).all()
            assert np.array_equal(p.grad.array, gradient)  # a gradient is only read
        for value in o.state[p].values():
            assert getattr(value, "dtype", dtype) == dtype

    def test_may_be_a_view_of_a_larger_one(self, optimizer, settings):
        whole = np.arange(24.0).reshape(4, 6)
        before = whole.copy()
        view, alone = Tensor(whole[::2, 1::2].T, requires_grad=True), tensor(whole[::2, 1::2].T)
        for p in (view, alone):
            o = optimizer([p], **settings)
            for _ in range(3):
                p.grad = tensor(np.arange(6.0).reshape(3, 2))
                o.step()
        assert np.array_equal(view.array, alone.array)
        assert np.shares_memory(view.array, whole) and (whole != before)[::2, 1::2].any()
        whole[::2, 1::2] = before[::2, 1::2]
        assert np.array_equal(whole, before)  # nothing beside the view was touched

    def test_may_be_one_long_buffer_for_all(self, optimizer, settings):
        rng = np.random.default_rng(0)
        pieces = [rng.normal(size=shape) for shape in SHAPES]
        flat = np.concatenate([piece.reshape(-1) for piece in pieces])
        o = optimizer([tensor(0.0, requires_grad=True)], **settings)
        group, states, flat_state = o.param_groups[0], [{} for _ in pieces], {}
        for _ in range(4):
            gradients = [np.asarray(rng.normal(size=shape)) for shape in SHAPES]
            for p, g, state in zip(pieces := [*map(np.asarray, pieces)], gradients, states):
                o.update(p, g, state, group)
            o.update(flat, np.concatenate([g.reshape(-1) for g in gradients]), flat_state, group)
        assert np.array_equal(flat, np.concatenate([piece.reshape(-1) for piece in pieces]))

    def test_records_nothing_and_holds_no_graph(self, optimizer, settings):
        p = tensor([1.0, 2.0], requires_grad=True)
        o = optimizer([p], **settings)
        gc.disable()
        try:
            loss = (p * p).sum()
            loss.backward(create_graph=True)  # a gradient with a graph of its own
            ghosts = weakref.ref(loss), weakref.ref(p.grad)
            o.step()
            assert p.is_leaf and p.requires_grad
            o.zero_grad()
            del loss
            assert ghosts[0]() is None and ghosts[1]() is None
        finally:
            gc.enable()
        kinds = {type(value) for value in o.state[p].values()}
        assert kinds <= {int, float, np.ndarray}

    def test_of_a_parameter_without_gradient_is_left_alone(self, optimizer, settings):
        used, unused = (tensor([1.0], requires_grad=True) for _ in range(2))
        o = optimizer([unused, used], **settings)
        (used * 2).sum().backward()
        o.step()
        assert unused.tolist() == [1.0] and used.tolist() != [1.0] and unused not in o.state

    def test_resumes_bit_for_bit(self, optimizer, settings):
        rng = np.random.default_rng(0)
        start, gradients = rng.normal(size=(2, 3)), rng.normal(size=(8, 2, 3))

        def train(p, o, gradients):
            for g in gradients:
                p.grad = tensor(g, dtype="float32")
                o.step()

        p = tensor(start, dtype="float32", requires_grad=True)
        o = optimizer([p], **settings)
        train(p, o, gradients[:5])
        saved, half_way = o.state_dict(), tensor(p)
        train(p, o, gradients[5:])

        q = tensor(half_way, requires_grad=True)
        resumed = optimizer([q])
        resumed.load_state_dict(saved)
        assert resumed.param_groups[0]["lr"] == settings["lr"]
        train(q, resumed, gradients[5:])
        assert np.array_equal(p.array, q.array) and not np.array_equal(p.array, half_way.array)
        again = optimizer([tensor(half_way, requires_grad=True)])
        again.load_state_dict(saved)  # neither owner's training reached the copy
        train(again.param_groups[0]["params"][0], again, gradients[5:])
        assert np.array_equal(again.param_groups[0]["params"][0].array, p.array)


# ---- state dicts ----


def plain(torch, value):
    "A state dict with its Tensors as torch's."
    if isinstance(value, dict):
        return {k: plain(torch, v) for k, v in value.items()}
    return torch.tensor(value.numpy()) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
@pytest.mark.parametrize("optimizer, settings", SETTINGS, ids=label)
def test_states_move_to_and_from_torch(torch, optimizer, settings, direction):
    both, theirs = Both(torch, "float64"), of_torch(torch, optimizer)
    ours, torches = optimizer(both.ours, **settings), theirs(both.theirs, **settings)
    both.train(ours, torches, 5)
    if direction == "to torch":
        torches = theirs(both.theirs)
        saved = ours.state_dict()
        torches.load_state_dict({**saved, "state": plain(torch, saved["state"])})
    else:
        ours = optimizer(both.ours)
        ours.load_state_dict(torches.state_dict())
    both.train(ours, torches, 10)
    if direction == "from torch":  # the parameters of ours, and nothing shared with torch
        assert ours.param_groups[0]["params"] == both.ours
        for p, t in zip(both.ours, both.theirs):
            for name, value in ours.state.get(p, {}).items():
                if isinstance(value, np.ndarray):
                    assert not np.shares_memory(value, torches.state[t][name].numpy())


@pytest.mark.parametrize("optimizer, settings", SETTINGS, ids=label)
def test_a_state_dict_has_the_layout_of_torchs(torch, optimizer, settings):
    both = Both(torch, "float32")
    ours = optimizer([{"params": both.ours[:1]}, {"params": both.ours[1:]}], **settings)
    theirs = of_torch(torch, optimizer)(both.theirs, **settings)
    assert ours.state_dict()["state"] == {}
    both.train(ours, theirs, 5)
    mine, torches = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == torches.keys()
    assert [group["params"] for group in mine["param_groups"]] == [[0], [1, 2, 3, 4]]
    assert mine["state"].keys() == torches["state"].keys()
    for i, state in mine["state"].items():
        assert state.keys() == torches["state"][i].keys()
        for name, value in state.items():
            expected = torches["state"][i][name].numpy()
            np.testing.assert_allclose(np.asarray(value), expected, rtol=1e-4, atol=1e-6)


def trained(optimizer, shapes=((2, 3), (3,)), **settings):
    "An optimizer after one step."
    params = [tensor(np.ones(shape), requires_grad=True) for shape in shapes]
    o = optimizer(params, **settings)
    for p in params:
        p.grad = tensor(np.ones(p.shape))
    o.step()
    return o


@pytest.mark.parametrize("saved, message", [
    (trained(Adam, [(2, 3)]), r"\[2\].*\[1\]"),
    (trained(Adam, [(2, 3), (4,)]), r"parameter 1 .*\(3,\).*'exp_avg' \(4,\)"),
    (trained(Adam, [(2, 3), (3, 1)]), r"parameter 1 .*\(3,\).*'exp_avg' \(3, 1\)"),
    (trained(SGD, momentum=0.9), r"lacks \['amsgrad', 'betas', 'eps'\].*another kind"),
], ids=["count", "shape", "broadcastable shape", "kind"])  # fmt: skip
def test_a_state_dict_that_does_not_fit_is_refused_whole(saved, message):
    o = trained(Adam, lr=0.3)
    before = repr(o.state_dict())
    with pytest.raises(ValueError, match=message):
        o.load_state_dict(saved.state_dict())
    assert repr(o.state_dict()) == before


def test_settings_of_ones_own_survive_in_a_state_dict():
    o = trained(Adam)
    o.param_groups[0]["initial_lr"] = 0.5
    other = trained(Adam)
    other.load_state_dict(o.state_dict())
    assert other.param_groups[0]["initial_lr"] == 0.5


# ---- what is handed over ----


def test_parameters_may_come_from_a_generator_and_repeatedly():
    a, b = tensor([1.0], requires_grad=True), tensor([2.0], requires_grad=True)
    o = SGD((p for p in (a, b, a)), lr=0.5)
    assert o.param_groups[0]["params"] == [a, b]
    o = SGD([{"params": (p for p in (a, a))}, {"params": b}])
    assert [group["params"] for group in o.param_groups] == [[a], [b]]


def test_equal_numbers_do_not_make_two_parameters_one():
    a, b = (tensor([1.0], requires_grad=True) for _ in range(2))
    o = Adam([a, b])
    a.grad, b.grad = tensor([1.0]), tensor([-1.0])
    o.step()
    assert len(o.state) == 2 and a.tolist() != b.tolist()


def test_zero_grad_forgets_rather_than_fills():
    a, b = tensor([1.0], requires_grad=True), tensor([2.0], requires_grad=True)
    o = SGD([{"params": [a]}, {"params": [b]}])
    (a * b).sum().backward()
    o.zero_grad()
    assert a.grad is None and b.grad is None


def test_a_learning_rate_is_a_float():
    a = tensor([1.0], requires_grad=True)
    o = SGD([{"params": [a], "lr": np.float64(1)}], lr=1)
    assert type(o.param_groups[0]["lr"]) is float
    assert type(SGD([a], lr=1).param_groups[0]["lr"]) is float


def test_the_settings_of_an_optimizer_are_printed():
    text = repr(trained(Adam, lr=0.25))
    assert text.startswith("Adam(") and "2 parameters" in text and "lr=0.25" in text


W = tensor([1.0, 2.0], requires_grad=True)


@pytest.mark.parametrize("make, error, message", [
    (lambda: SGD([]), ValueError, "optimizer got an empty parameter list.*generator"),
    (lambda: SGD(p for p in ()), ValueError, "optimizer got an empty parameter list"),
    (lambda: SGD(W), TypeError, r"list of Tensors.*model.parameters\(\).*got a Tensor"),
    (lambda: SGD({"params": [W]}), TypeError, "list.*got a dict"),
    (lambda: SGD({W}), TypeError, "list.*got a set"),
    (lambda: SGD([{"params": {W}}]), TypeError, "list.*got a set"),
    (lambda: SGD(3), TypeError, "list.*got a int"),
    (lambda: SGD([W, 3.0]), TypeError, r"only optimize Tensors, but params\[1\] is a float"),
    (lambda: SGD([W.array]), TypeError, r"only optimize Tensors.*ndarray.*model.parameters"),
    (lambda: SGD([("w", W)]), TypeError, "only optimize Tensors.*tuple"),
    (lambda: SGD([{"params": [W]}, W]), TypeError, "a parameter group is a dict with 'params'"),
    (lambda: SGD([{"lr": 1.0}]), TypeError, "a parameter group is a dict with 'params'.*lr"),
    (lambda: SGD([W * 2]), ValueError, r"can't optimize a non-leaf Tensor.*params\[0\].*\(2,\)"),
    (lambda: SGD([{"params": W}, {"params": [W]}]), ValueError, "more than one parameter group"),
    (lambda: SGD([W]).add_param_group({"params": W}), ValueError, "more than one"),
    (lambda: Optimizer([W], {"lr": 1.0}).update(None, None, {}, {}), NotImplementedError, "define"),
    (lambda: SGD([W], 0.1, 0, 0, 0, False, True), TypeError, "positional"),
])  # fmt: skip
def test_what_is_no_parameter_is_told(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("optimizer, settings", [
    (SGD, dict(lr=-0.1)),
    (SGD, dict(momentum=-0.5)),
    (SGD, dict(weight_decay=-1.0)),
    (SGD, dict(nesterov=True)),
    (SGD, dict(nesterov=True, momentum=0.9, dampening=0.1)),
    (Adam, dict(lr=-0.1)),
    (Adam, dict(betas=(1.0, 0.9))),
    (Adam, dict(betas=(0.9, -0.1))),
    (Adam, dict(eps=-1e-8)),
    (Adam, dict(weight_decay=-1.0)),
    (AdamW, dict(lr=-0.1)),
    (AdamW, dict(betas=(0.9, 1.0))),
    (AdamW, dict(weight_decay=-1.0)),
    (AdaGrad, dict(lr=-0.1)),
    (AdaGrad, dict(lr_decay=-0.1)),
    (AdaGrad, dict(weight_decay=-0.1)),
    (AdaGrad, dict(initial_accumulator_value=-0.1)),
    (AdaGrad, dict(eps=-0.1)),
    (RMSProp, dict(lr=-0.1)),
    (RMSProp, dict(alpha=-0.1)),
    (RMSProp, dict(eps=-0.1)),
    (RMSProp, dict(momentum=-0.1)),
    (RMSProp, dict(weight_decay=-0.1)),
    (NAdam, dict(lr=-0.1)),
    (NAdam, dict(betas=(0.9, 1.0))),
    (NAdam, dict(momentum_decay=-0.1)),
    (NAdam, dict(eps=-0.1)),
    (NAdam, dict(weight_decay=-0.1)),
    (RAdam, dict(lr=-0.1)),
    (RAdam, dict(betas=(-0.1, 0.9))),
    (RAdam, dict(eps=-0.1)),
    (RAdam, dict(weight_decay=-0.1)),
], ids=label)  # fmt: skip
def test_senseless_settings_are_refused_as_in_torch(torch, optimizer, settings):
    with pytest.raises(ValueError) as theirs:
        of_torch(torch, optimizer)([torch.ones(2, requires_grad=True)], **settings)
    with pytest.raises(ValueError) as ours:
        optimizer([W], **settings)
    assert str(ours.value).startswith(str(theirs.value)) and len(str(ours.value)) > 40
    with pytest.raises(ValueError):  # in a group, too
        optimizer([{"params": [W], **settings}])


def test_a_new_optimizer_is_a_few_lines():
    class SignDescent(Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, dict(lr=lr))

        def update(self, p, g, state, group):
            state["calls"] = state.get("calls", 0) + 1
            p -= group["lr"] * backend_of(p).xp.sign(g)

    p = tensor([1.0, 1.0, 1.0], dtype="float64", requires_grad=True)
    o = SignDescent([p], lr=0.25)
    p.grad = tensor([5.0, 0.0, -0.1], dtype="float64")
    o.step()
    assert p.tolist() == [0.75, 1.0, 1.25] and o.state_dict()["state"] == {0: {"calls": 1}}


def test_star_import_brings_what_is_public_and_nothing_else():
    space = {}
    exec("from minima.optim import *", space)
    del space["__builtins__"]
    names = {optimizer.__name__ for optimizer in PUBLIC} | {*OTHERS.split()}
    assert set(optim.__all__) == space.keys() == names


# ---- what was once wrong elsewhere ----


@pytest.mark.parametrize("optimizer", [Adam, AdamW])
def test_bias_correction_counts_steps_and_not_the_place_in_the_list(optimizer):
    params = [tensor([1.0], dtype="float64", requires_grad=True) for _ in range(3)]
    o = optimizer(params, lr=0.1, weight_decay=0)
    seen = []
    for _ in range(2):
        for p in params:
            p.grad = tensor([1.0], dtype="float64")
        o.step()
        assert params[0].item() == params[1].item() == params[2].item()
        seen.append(params[0].item())
    assert seen == pytest.approx([0.9, 0.8], abs=1e-7)


def test_bias_correction_counts_the_steps_of_each_parameter_alone():
    early, late = (tensor([1.0], dtype="float64", requires_grad=True) for _ in range(2))
    o = Adam([early, late], lr=0.1)
    for _ in range(10):
        early.grad = tensor([1.0], dtype="float64")
        o.step()
    late.grad = tensor([1.0], dtype="float64")
    o.step()
    assert late.item() == pytest.approx(0.9, abs=1e-7)


def test_momentum_is_not_dampened_unless_asked():
    p = tensor([0.0], dtype="float64", requires_grad=True)
    o = SGD([p], lr=1.0, momentum=0.9)
    for _ in range(2):
        p.grad = tensor([1.0], dtype="float64")
        o.step()
    assert p.item() == pytest.approx(-2.9)


def test_weight_decay_of_adam_goes_through_the_gradient_and_that_of_adamw_does_not():
    for optimizer, expected in ((Adam, 0.9), (AdamW, 0.95)):
        p = tensor([1.0], dtype="float64", requires_grad=True)
        o = optimizer([p], lr=0.1, weight_decay=0.5)
        p.grad = tensor([0.0], dtype="float64")
        o.step()
        assert p.item() == pytest.approx(expected, abs=1e-6)


def test_epsilon_is_added_outside_the_root():
    p = tensor([0.0], dtype="float64", requires_grad=True)
    o = Adam([p], lr=1.0, eps=1.0)
    p.grad = tensor([3.0], dtype="float64")
    o.step()
    assert p.item() == pytest.approx(-3 / (3 + 1))


def test_default_learning_rates_are_those_of_torch(torch):
    for optimizer in PUBLIC:
        theirs = of_torch(torch, optimizer)([torch.ones(1, requires_grad=True)])
        for name, value in optimizer([W]).defaults.items():
            assert value == theirs.defaults[name], (optimizer, name)


def test_float32_parameters_train_with_every_optimizer():
    for optimizer in PUBLIC:
        p = tensor([1.0, 2.0], requires_grad=True)
        o = optimizer([p], lr=0.1)
        for _ in range(3):
            o.zero_grad()
            (p * p).sum().backward()
            o.step()
        assert p.dtype == p.grad.dtype == "float32" and p.tolist()[0] < 1


def test_a_parameter_listed_twice_takes_one_step():
    p = tensor([1.0], requires_grad=True)
    o = SGD([p, p], lr=0.25)
    p.grad = tensor([1.0])
    o.step()
    assert p.tolist() == [0.75]


def test_what_an_optimizer_remembers_does_not_grow_with_the_steps():
    p = tensor([1.0, 2.0], requires_grad=True)
    for o in (SGD([p], lr=0.01, momentum=0.9), *(optimizer([p]) for optimizer in PUBLIC)):
        counts = []
        for step in range(60):
            o.zero_grad()
            (p * p).sum().backward()
            o.step()
            if step in (9, 59):
                counts.append(sum(type(thing) is Tensor for thing in gc.get_objects()))
        assert counts[0] == counts[1]


def test_a_learning_rate_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="Invalid learning rate: nan"):
        SGD([W], lr=float("nan"))
