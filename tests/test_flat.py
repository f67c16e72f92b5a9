"Parameters side by side: the same bits as one by one, whatever is done to them from outside."

import copy
import pickle

import numpy as np
import pytest

from minima import nn, optim
from minima.autograd import Tensor, grad, tensor
from minima.backend import Kernels, _switch, numpy_backend
from minima.optim import flat
from minima.optim.optimizers import _sgd

SHAPES = [(3, 4), (1, 4), (), (4, 2), (2,), (0, 5)]
OPTIMIZERS = [
    (optim.SGD, {}),
    (optim.SGD, dict(momentum=0.9, weight_decay=0.1, dampening=0.3)),
    (optim.SGD, dict(momentum=0.9, nesterov=True)),
    (optim.Adam, {}),
    (optim.Adam, dict(amsgrad=True, weight_decay=0.1, maximize=True)),
    (optim.AdamW, {}),
    (optim.AdaGrad, dict(initial_accumulator_value=0.3, lr_decay=0.1)),
    (optim.RMSProp, dict(momentum=0.9, centered=True)),
    (optim.NAdam, dict(decoupled_weight_decay=True)),
    (optim.RAdam, dict(weight_decay=0.1)),
]
EACH = pytest.mark.parametrize(
    ("kind", "settings"), OPTIMIZERS, ids=[f"{k.__name__}{[*s]}" for k, s in OPTIMIZERS]
)


class Pair:
    "Two sets of equal parameters: one may lie side by side, the other may not."

    def __init__(self, kind, settings, shapes=SHAPES, dtypes=("float32",), seed=0):
        rng = self.rng = np.random.default_rng(seed)
        arrays = [
            np.asarray(rng.normal(size=shape)).astype(dtypes[i % len(dtypes)])
            for i, shape in enumerate(shapes)
        ]
        self.sets = [[tensor(a.copy(), requires_grad=True) for a in arrays] for _ in range(2)]
        self.optimizers = [kind(params, lr=0.01, **settings) for params in self.sets]
        self.optimizers[1]._bundles = Never()

    def step(self, without=()):
        "A step of both with the same random gradients; those in `without` have none."
        for i, pair in enumerate(zip(*self.sets, strict=True)):
            g = self.rng.normal(size=pair[0].shape).astype(pair[0].dtype)
            for p in pair:
                p.grad = None if i in without else tensor(g)
        for optimizer in self.optimizers:
            optimizer.step()

    def check(self):
        "Whether both sets, and what is remembered of them, are equal in all bits."
        for ours, theirs in zip(*self.sets, strict=True):
            assert ours.dtype == theirs.dtype and np.array_equal(ours.array, theirs.array)
            states = [o.state.get(p, {}) for o, p in zip(self.optimizers, (ours, theirs))]
            assert states[0].keys() == states[1].keys()
            for name, value in states[0].items():
                assert np.shape(value) == np.shape(states[1][name])
                assert np.array_equal(value, states[1][name]), name

    def bundles(self):
        "How many parameters there are in each bundle."
        return sorted(len(b.params) for b in {*self.optimizers[0]._bundles.of.values()})


class Never:
    "Bundles that there are none of."

    def step(self, ready, update, group):
        pass


@EACH
def test_a_bundle_computes_the_bits_of_its_parameters_one_by_one(kind, settings):
    pair = Pair(kind, settings)
    for _ in range(5):
        pair.step()
        pair.check()
    assert pair.bundles() == [len(SHAPES)]


@EACH
def test_parameters_without_a_gradient_take_no_step(kind, settings):
    pair = Pair(kind, settings)
    for without in ([5], [5], [], [0, 1], [], [2], [2], [], range(6), [], []):
        pair.step(without)
        pair.check()
    assert sum(pair.bundles()) > 1


def test_a_large_parameter_goes_in_chunks(monkeypatch):
    monkeypatch.setattr(flat, "CHUNK", 7)
    for kind, settings in OPTIMIZERS:
        pair = Pair(kind, settings)
        for _ in range(4):
            pair.step()
        pair.check()
        (bundle,) = {*pair.optimizers[0]._bundles.of.values()}
        assert len(bundle.chunks) == 4


def test_a_kernel_and_a_backend_that_wants_it_get_all_at_once(monkeypatch):
    monkeypatch.setattr(flat, "CHUNK", 7)
    sizes = []

    def kernel(p, *args, **settings):
        sizes.append(p.size)
        _sgd.rule(p, *args, **settings)

    monkeypatch.setattr(Kernels, "on", True)
    _sgd.kernels.find("cpu")  # so that it does not come later
    monkeypatch.setitem(_sgd.kernels.known, "cpu", kernel)
    pair = Pair(optim.SGD, {})
    pair.step()
    assert sizes[:1] == [27] and sorted(sizes[1:]) == [0, 1, 2, 4, 8, 12]
    pair.check()
    monkeypatch.setattr(numpy_backend, "piecewise", False)
    pair = Pair(optim.RMSProp, {})
    pair.step()
    pair.check()
    (bundle,) = {*pair.optimizers[0]._bundles.of.values()}
    assert len(bundle.chunks) == 1


def test_where_a_backend_lays_nothing_side_by_side_each_goes_alone(monkeypatch):
    pair = Pair(optim.Adam, {})
    monkeypatch.setattr(numpy_backend, "side_by_side", None)
    pair.step()
    pair.check()
    assert pair.bundles() == []


@EACH
def test_dtypes_keep_to_themselves(kind, settings):
    pair = Pair(kind, settings, SHAPES[:5], dtypes=("float32", "float64"))
    for _ in range(3):
        pair.step()
    pair.check()
    assert pair.bundles() == [2, 3]


def adam(shapes=SHAPES):
    return Pair(optim.Adam, dict(weight_decay=0.1), shapes)


def test_a_parameter_whose_array_somebody_holds_stays_where_it_is():
    pair = adam()
    held = [p.array for p in pair.sets[0]][0]
    view = pair.sets[0][1].array[:, ::2]
    shared = pair.sets[0][3].data
    for _ in range(3):
        pair.step()
    pair.check()
    assert pair.bundles() == [3]
    assert held is pair.sets[0][0].array and shared.array is pair.sets[0][3].array
    assert np.shares_memory(view, pair.sets[0][1].array)
    del held, view, shared
    pair.step()
    pair.check()
    assert pair.bundles() == [3, 3]


def test_a_view_that_is_taken_later_sees_all_steps():
    pair = adam()
    pair.step()
    view, data = pair.sets[0][0].array[1], pair.sets[0][1].data
    for _ in range(3):
        pair.step()
    assert np.array_equal(view, pair.sets[1][0].array[1])
    assert np.array_equal(data.array, pair.sets[1][1].array)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_parameter_may_be_replaced(dtype):
    pair = adam()
    pair.step()
    for params in pair.sets:
        params[0].data = np.full((3, 4), 2.0, dtype)
        params[3].array = np.full((4, 2), 3.0, "float32")
    for _ in range(3):
        pair.step()
        pair.check()
    assert sum(pair.bundles()) >= 5


def test_a_parameter_may_be_written_into():
    pair = adam()
    pair.step()
    for params in pair.sets:
        params[0].data[...] = 2.0
    pair.step()
    pair.check()


def replace_array(state):
    state["exp_avg"] = np.full((3, 4), 0.5, "float32")


def write_array(state):
    state["exp_avg_sq"][...] = 0.25


def replace_number(state):
    state["step"] = 10


@pytest.mark.parametrize("change", [replace_array, write_array, replace_number, dict.clear])
def test_what_is_remembered_may_be_changed(change):
    pair = adam()
    pair.step()
    for o, params in zip(pair.optimizers, pair.sets, strict=True):
        change(o.state[params[0]])
    for _ in range(3):
        pair.step()
        pair.check()


def test_what_is_remembered_may_be_another_dict_of_the_same_arrays():
    pair = adam()
    pair.step()
    for o, params in zip(pair.optimizers, pair.sets, strict=True):
        o.state[params[0]] = dict(o.state[params[0]])
    pair.step()
    pair.check()


def test_a_gradient_of_another_dtype_counts_as_it_is():
    pair = adam()
    for _ in range(3):
        pair.step()
        for o, params in zip(pair.optimizers, pair.sets, strict=True):
            params[0].grad = tensor(np.full((3, 4), 1 / 3))  # float64
            o.step()
        pair.check()


def test_a_gradient_of_another_shape_counts_as_it_is():
    pair = Pair(optim.SGD, {})
    for params, o in zip(pair.sets, pair.optimizers, strict=True):
        for p in params:
            p.grad = tensor(np.ones(p.shape, "float32"))
        params[0].grad = tensor(np.float32([1, 2, 3, 4]))  # for each row
        o.step()
    pair.check()


def test_who_has_taken_as_many_steps_goes_together_whatever_the_order_of_names():
    pair = adam()
    pair.step([0, 1, 2])
    pair.step()
    assert pair.bundles() == [3, 3]
    for o, params in zip(pair.optimizers, pair.sets, strict=True):
        o.state[params[1]] = dict(reversed(o.state[params[1]].items()))
    pair.step()
    assert pair.bundles() == [3, 3]
    pair.check()


def test_who_comes_with_other_numbers_of_steps_goes_apart():
    pair, other = adam(), adam()
    pair.step([0, 1, 2])
    pair.step()
    for o in other.optimizers:
        o.load_state_dict(copy.deepcopy(pair.optimizers[1].state_dict()))
    other.step()
    other.check()
    assert other.bundles() == [3, 3]


def test_gradients_come_home_unless_somebody_looks_at_what_was_there():
    pair = adam()
    pair.step()
    (bundle,) = {*pair.optimizers[0]._bundles.of.values()}
    before = bundle.gradient
    pair.step()
    assert bundle.gradient is before
    held = pair.sets[0][0]._home
    numbers = held.copy()
    pair.step()
    pair.check()
    assert bundle.gradient is not before and np.array_equal(held, numbers)


def test_a_walk_back_through_what_a_step_has_changed_is_refused():
    pair = adam()
    pair.step()
    p = pair.sets[0][0]
    y = (p * p).sum()
    pair.step()
    with pytest.raises(RuntimeError, match=r"an optimizer's step\(\)"):
        y.backward()


def test_settings_that_ask_for_more_memory_in_the_middle():
    pair = Pair(optim.SGD, {})
    pair.step()
    for o in pair.optimizers:
        o.param_groups[0]["momentum"] = 0.9
    for _ in range(3):
        pair.step()
        pair.check()


def test_groups_keep_to_themselves():
    pair = adam()
    for o, params in zip(pair.optimizers, pair.sets, strict=True):
        more = [tensor(np.ones(3, "float32"), requires_grad=True) for _ in range(2)]
        o.add_param_group({"params": more, "lr": 0.5})
        params += more
    for _ in range(3):
        pair.step()
    pair.check()
    assert pair.bundles() == [2, 6]


def test_a_parameter_that_leaves_the_group_leaves_the_others_together():
    pair = adam()
    pair.step()
    for o, params in zip(pair.optimizers, pair.sets, strict=True):
        o.param_groups[0]["params"][:] = params[1:]
        del o.state[params[0]]
    for _ in range(2):
        pair.step()
        pair.check()
    assert pair.bundles() == [5]
    assert pair.sets[0][0] not in pair.optimizers[0]._bundles.of


def test_states_go_from_one_optimizer_to_another():
    pair = adam()
    pair.step()
    pair.step()
    saved = copy.deepcopy(pair.optimizers[0].state_dict())
    pair.step()
    pair.optimizers[1].load_state_dict(pair.optimizers[0].state_dict())
    pair.step()
    pair.check()
    for o in pair.optimizers:
        o.load_state_dict(saved)
    pair.step()
    pair.check()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_model_and_optimizer_trains_by_itself(copied):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)

    def train(model, optimizer):
        optimizer.zero_grad()
        (model(Tensor(np.ones((5, 3), "float32"))) ** 2).sum().backward()
        optimizer.step()
        return [p.array.copy() for p in model.parameters()]

    train(model, optimizer)
    other, its_optimizer = copied((model, optimizer))
    frozen = [p.array.copy() for p in model.parameters()]
    expected = [train(other, its_optimizer) for _ in range(3)]
    for p, before in zip(model.parameters(), frozen, strict=True):
        assert np.array_equal(p.array, before)
    for after in expected:
        for a, b in zip(train(model, optimizer), after, strict=True):
            assert np.array_equal(a, b)


# ---- gradients at home ----


def product(xp, x, w):
    "A kernel of `matmul` that can write the gradient of its second argument."
    return (
        xp.matmul(x, w),
        lambda g: xp.matmul(g, w.T),
        lambda g, out=None: xp.matmul(x.T, g, out=out),
    )


@pytest.fixture
def matmul():
    "An op whose kernel writes gradients home."
    from minima.autograd import op

    @op
    def matmul(xp, x, w):
        return xp.matmul(x, w), lambda g: xp.matmul(g, w.T), lambda g: xp.matmul(x.T, g)

    matmul.kernel("cpu")(product)
    before = Kernels.on
    _switch(True)
    yield matmul
    _switch(before)


class Home:
    "A parameter with a home, and a second one."

    def __init__(self):
        self.params = [tensor(np.ones((3, 2)), requires_grad=True) for _ in range(2)]
        self.optimizer = optim.Adam(self.params)
        for p in self.params:
            p.grad = tensor(np.ones((3, 2)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        (self.bundle,) = {*self.optimizer._bundles.of.values()}
        self.p = self.params[0]
        self.x = tensor(np.arange(12.0).reshape(4, 3))

    def is_at_home(self):
        return np.shares_memory(self.p.grad.array, self.bundle.gradient)


def test_a_gradient_is_written_home(matmul):
    home = Home()
    matmul(home.x, home.p).sum().backward()
    assert home.is_at_home()
    assert np.array_equal(home.p.grad.array, home.x.array.T @ np.ones((4, 2)))


def test_a_second_gradient_is_added(matmul):
    home = Home()
    for _ in range(2):
        matmul(home.x, home.p).sum().backward()
    y = matmul(home.x, home.p) + matmul(home.x * 2, home.p)
    y.sum().backward()
    assert np.array_equal(home.p.grad.array, 5 * home.x.array.T @ np.ones((4, 2)))
    home.optimizer.zero_grad()
    (matmul(home.x, home.p) + matmul(home.x * 2, home.p)).sum().backward()
    assert np.array_equal(home.p.grad.array, 3 * home.x.array.T @ np.ones((4, 2)))


@pytest.mark.parametrize("look", [lambda g: g, lambda g: g.array[0], lambda g: g.detach()])
def test_a_gradient_that_somebody_keeps_is_not_written_over(matmul, look):
    home = Home()
    matmul(home.x, home.p).sum().backward()
    kept = look(home.p.grad)
    before = np.array(getattr(kept, "array", kept))
    for _ in range(2):
        home.optimizer.zero_grad()
        matmul(home.x * 7, home.p).sum().backward()
        home.params[1].grad = tensor(np.ones((3, 2)))
        home.optimizer.step()
    assert np.array_equal(getattr(kept, "array", kept), before)
    assert np.array_equal(home.p.grad.array, 7 * home.x.array.T @ np.ones((4, 2)))


def test_a_gradient_that_is_asked_for_by_itself_stays(matmul):
    home = Home()
    (g,) = grad(matmul(home.x, home.p).sum(), [home.p])
    matmul(home.x * 3, home.p).sum().backward()
    assert np.array_equal(g.array, home.x.array.T @ np.ones((4, 2)))


def test_a_hook_that_keeps_what_it_sees(matmul):
    home, seen = Home(), []
    home.p.register_hook(seen.append)
    for k in (1, 2):
        home.optimizer.zero_grad()
        matmul(home.x * k, home.p).sum().backward()
    expected = home.x.array.T @ np.ones((4, 2))
    assert [np.array_equal(g.array, k * expected) for k, g in enumerate(seen, 1)] == [True] * 2


def test_a_parameter_of_another_dtype_has_no_home(matmul):
    home = Home()
    home.p.data = home.p.data.to("float32")
    matmul(home.x.to("float32"), home.p).sum().backward()
    assert home.p.grad.dtype == "float32" and not home.is_at_home()


def test_a_parameter_of_another_shape_has_no_home(matmul):
    home = Home()
    home.p.data = np.ones((3, 5))
    matmul(home.x, home.p).sum().backward()
    assert np.array_equal(home.p.grad.array, home.x.array.T @ np.ones((4, 5)))
