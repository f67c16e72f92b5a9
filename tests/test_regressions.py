"Mistakes that frameworks like this one have made, as far as no other file guards against them."

import copy

import numpy as np
import pytest
from test_backend import Box, BoxBackend, Boxes

from minima import backend, init, nn
from minima.autograd import Tensor
from minima.backend import kernels_off, register
from minima.optim import SGD, AdaGrad, Adam, AdamW, NAdam, RMSProp
from minima.random import manual_seed


@pytest.fixture(scope="module")
def elsewhere():
    "The name of a device whose arrays are no NumPy arrays, and refuse to be mixed with them."
    yield register(BoxBackend("elsewhere", Boxes(), Box)).name
    del backend._by_name["elsewhere"], backend._by_type[Box]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# ---- layers ----


LAYERS = {
    "Linear": lambda **kw: nn.Linear(4, 4, **kw),
    "LayerNorm": lambda **kw: nn.LayerNorm(4, **kw),
    "BatchNorm1d": lambda **kw: nn.BatchNorm1d(4, **kw),
    "Dropout": lambda device=None: nn.Dropout(0.5),
    "Softmax": lambda device=None: nn.Softmax(),
}


@pytest.mark.parametrize("how", ["made there", "moved there"])
@pytest.mark.parametrize("name", LAYERS)
def test_masks_statistics_and_parameters_live_where_the_input_lives(name, how, elsewhere):
    results = []
    for device in ("cpu", elsewhere):
        manual_seed(0)
        make = LAYERS[name]
        layer = make(device=device) if how == "made there" else make().to(device)
        x = Tensor(normal(6, 4), device=device, requires_grad=True)
        with kernels_off():  # which only one of the two has
            y = layer(x)
        y.backward(Tensor(normal(6, 4, seed=1), device=device))
        tensors = [y, x.grad, *layer.state_dict().values(), *(p.grad for p in layer.parameters())]
        assert all(t.device.type == device for t in tensors)
        results.append([t.to("cpu").detach().numpy() for t in tensors])
    for here, there in zip(*results, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6)


def test_a_model_is_evaluated_and_copied_after_more_steps_than_python_may_recurse():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    x = Tensor(normal(4, 2), requires_grad=True)
    for _ in range(1100):
        model(x)
    copied = copy.deepcopy(model.eval())
    model(x).sum().backward()
    assert copied(x).tolist() == model(x).tolist() and x.grad is not None


def test_a_layer_whose_bias_is_all_zeros_still_adds_and_trains_it():
    layer = nn.Linear(2, 1)
    layer.bias.data = Tensor([[0.0]])
    layer(Tensor(normal(3, 2))).sum().backward()
    SGD(layer.parameters(), lr=1.0).step()
    assert layer.bias.tolist() == [[-3.0]]


def test_two_loops_over_one_sequential_do_not_share_their_place():
    model = nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid())
    first, second = iter(model), iter(model)
    assert next(first) is next(second) is model[0] and next(first) is model[1]
    assert [*second] == [model[1], model[2]] and [*model] == [*model]


# ---- tensors ----


def test_before_any_backward_a_gradient_is_None_and_not_an_AttributeError():
    x = Tensor([1.0], requires_grad=True)
    tensors = x, Tensor([1]), x * 2, nn.Parameter([1.0]), nn.Buffer([1.0]), init.zeros(2)
    assert [t.grad for t in tensors] == [None] * 6


@pytest.mark.parametrize(
    "key, expected",
    [(slice(-2, None), [3, 4]), (slice(-3, -1), [2, 3]), (slice(None, None, 3), [0, 3]),
     (slice(0, 5, 3), [0, 3]), (slice(1, 5, 2), [1, 3]), (slice(-9, 2), [0, 1]),
     (slice(4, None, -2), [4, 2, 0]), (slice(3, 9), [3, 4]), (-5, 0)],
)  # fmt: skip
def test_slices_may_begin_before_the_start_count_from_the_end_and_step_past_it(key, expected):
    x = Tensor(np.arange(5.0), requires_grad=True)
    y = x[key]
    y.sum().backward()
    assert y.tolist() == expected
    assert [i for i, g in enumerate(x.grad.tolist()) if g] == sorted(np.ravel(expected).tolist())


def test_a_view_is_read_by_its_own_strides_whatever_reshapes_it():
    x = Tensor(np.arange(24.0).reshape(2, 3, 4), requires_grad=True)
    views = x.transpose(0, 2), x[:, ::-1], x[..., 1::2], x[:1].broadcast_to((5, 3, 4)), x.T[1]
    for y in views:
        flat, n = y.detach().numpy().ravel(), y.size
        assert y.reshape(-1).tolist() == flat.tolist() == y.flatten().tolist()
        assert y.reshape(n, 1).tolist() == flat.reshape(n, 1).tolist()


@pytest.mark.parametrize("name", ["sum", "mean", "max", "var", "logsumexp"])
def test_axis_0_is_an_axis_and_not_none_on_the_way_back_too(name):
    x = Tensor(normal(2, 3), requires_grad=True)
    y = getattr(x, name)(axis=0)
    y[0].backward()
    g = x.grad.numpy()
    assert (
        y.shape == (3,) and g[:, 0].any() and not g[:, 1:].any()
    )  # the other columns have no part in it


# ---- training ----


@pytest.mark.parametrize("optimizer", [Adam, AdamW, NAdam, AdaGrad, RMSProp])
def test_epsilon_is_added_to_the_root_and_not_under_it(optimizer):
    steps = []
    for eps in (1.0, 1e-12):
        p = nn.Parameter(np.zeros(1))
        p.grad = Tensor(np.array([3.0]))
        optimizer([p], lr=1.0, eps=eps).step()
        steps.append(-p.item())
    root = 0.3 if optimizer is RMSProp else 3.0  # sqrt((1 - 0.99) * 9), or sqrt(9)
    assert steps[0] == pytest.approx(steps[1] * root / (root + 1))


def test_equal_parameters_with_equal_gradients_stay_equal_wherever_they_stand_in_the_list():
    params = [nn.Parameter(np.ones(2)) for _ in range(3)]
    optimizer = Adam(params, lr=0.1)
    for step in range(5):
        for p in params:
            p.grad = Tensor(np.array([1.0, -2.0]) * (step + 1))
        optimizer.step()
    assert params[0].tolist() == params[1].tolist() == params[2].tolist() != [1.0, 1.0]
