"Stochastic depth: the formula, what is not computed, surgery, and training that goes on exactly."

import copy

import numpy as np
import pytest

import minima as mi
from minima import functional as cf
from minima import nn, optim
from minima.algorithms import NoEffectWarning, StochasticDepth, StochasticResidual
from minima.autograd import Tensor
from minima.data import DataLoader, TensorDataset
from minima.random import Generator, keep_mask
from minima.testing import gradcheck
from minima.trainer import Event, Trainer

METHODS = ("block", "sample")


class Counted(nn.Module):
    "A linear layer that notes how many rows it was given."

    def __init__(self, n):
        self.linear, self.rows = nn.Linear(n, n), []

    def forward(self, x):
        self.rows.append(len(x))
        return self.linear(x)


def scaled(p):
    "What is left of `p`, as a mask has it, and the scale that goes with it."
    return 1 / (1 - round(p * 65536) / 65536)


# ---- the layer ----


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("shape", [(1, 3), (7, 3), (5, 2, 3), (0, 3)])
@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_are_torchs_formula(torch, method, p, shape, dtype, atol):
    rng = np.random.default_rng(0)
    for seed in range(6):
        block = StochasticResidual(nn.Linear(3, 3), p, method, Generator(seed)).to(dtype=dtype)
        a, upstream = (rng.normal(size=shape).astype(dtype) for _ in range(2))
        weight, bias = (torch.tensor(t.data.numpy()).requires_grad_() for t in block.parameters())
        theirs_x = torch.tensor(a).requires_grad_()
        n = 1 if method == "block" else shape[0]
        kept = keep_mask(n, p, seed, 0).astype(dtype).reshape(-1, *[1] * (len(shape) - 1))
        branch = theirs_x @ weight + bias
        theirs = theirs_x + branch * (torch.tensor(kept) * scaled(p)).to(branch.dtype)
        theirs.backward(torch.tensor(upstream))
        x = Tensor(a, requires_grad=True)
        y = block(x)
        assert y.dtype == dtype and y.shape == shape
        y.backward(Tensor(upstream))
        np.testing.assert_allclose(y.data.numpy(), theirs.detach().numpy(), atol=atol, rtol=atol)
        np.testing.assert_allclose(x.grad.numpy(), theirs_x.grad.numpy(), atol=atol, rtol=atol)
        for ours, other in zip(block.parameters(), (weight, bias)):
            if kept.any():
                g = ours.grad.numpy()
                np.testing.assert_allclose(g, other.grad.numpy(), atol=10 * atol, rtol=atol)
            else:
                assert ours.grad is None


def test_gradcheck():
    class Repeated(StochasticResidual):
        def forward(self, x):
            self.generator = Generator(2)
            return super().forward(x)

    block = Repeated(nn.Tanh(), 0.5, "sample")
    assert keep_mask(5, 0.5, 2, 0).sum() in (1, 2, 3, 4)
    x = Tensor(np.random.default_rng(0).normal(size=(5, 3)), requires_grad=True)
    assert gradcheck(block, [x], order=2)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_out_is_not_computed(method):
    inner = Counted(4)
    block = StochasticResidual(inner, 0.5, method, Generator(0))
    x, seen = Tensor(np.ones((9, 4), "float32")), []
    for i in range(40):
        y = block(x)
        kept = keep_mask(1 if method == "block" else 9, 0.5, 0, i)
        seen += [9 if method == "block" else int(kept.sum())] if kept.any() else []
        assert inner.rows == seen
        assert (y is x) == (not kept.any())
    one = Tensor(np.ones((1, 4), "float32"))
    assert any(block(one) is one for _ in range(20))


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_is_plain_and_draws_nothing(method):
    generator = Generator(0)
    block = StochasticResidual(nn.Linear(3, 3), 0.7, method, generator).eval()
    x = Tensor(np.ones((4, 3), "float32"))
    assert np.array_equal(block(x).data, nn.Residual(block.fn)(x).data)
    block.train().p = 0.0
    assert np.array_equal(block(x).data, nn.Residual(block.fn)(x).data)
    assert generator.get_state()["offset"] == 0
    block.p = 1.0
    assert block(x) is x and generator.get_state()["offset"] == 1


def test_minimas_own_generator_is_the_default():
    block = StochasticResidual(nn.Linear(3, 3), 0.5, "sample")
    x = Tensor(np.ones((9, 3), "float32"))
    outcomes = []
    for seed in (1, 1, 2):
        mi.manual_seed(seed)
        outcomes.append(block(x).tolist())
    assert outcomes[0] == outcomes[1] != outcomes[2]


def test_samples_are_axis_0_and_whole():
    block = StochasticResidual(lambda x: x, 0.5, "sample", Generator(0))
    y = block(Tensor(np.ones((64, 2, 3)))).numpy()
    assert set(np.unique(y)) == {1.0, 3.0} and (y == y[:, :1, :1]).all()


def test_batch_norm_sees_the_rows_that_are_kept():
    norm = nn.BatchNorm1d(2, momentum=None).double()
    block = StochasticResidual(norm, 0.5, "sample", Generator(1))
    a = np.random.default_rng(0).normal(size=(30, 2))
    block(Tensor(a))
    kept = a[keep_mask(30, 0.5, 1, 0)]
    np.testing.assert_allclose(norm.running_mean.numpy(), kept.mean(0), rtol=1e-12)


def test_a_branch_that_changes_the_shape_is_named():
    model = nn.Sequential(StochasticResidual(nn.Linear(4, 1), 0.1, generator=Generator(0)))
    with pytest.raises(ValueError, match=r"keep the shape, but \(2, 4\) became \(2, 1\)"):
        model(Tensor(np.ones((2, 4), "float32")))


@pytest.mark.parametrize("wrong, words", [
    ({"p": 1.5}, "StochasticResidual expects a probability"), ({"p": -0.1}, "probability"),
    ({"method": "row"}, "method is one of 'block', 'sample'; got 'row'"),
])  # fmt: skip
def test_a_layer_says_what_it_lacks(wrong, words):
    with pytest.raises(ValueError, match=words):
        StochasticResidual(nn.Identity(), **wrong)


def test_arrays_become_tensors():
    x = np.ones((2, 3))
    for p in (0.0, 1.0):
        y = StochasticResidual(nn.Tanh(), p)(Tensor(x) if p == 0 else x)
        assert isinstance(y, Tensor)
    assert (y.numpy() == x).all()


def test_it_prints_itself():
    shown = repr(StochasticResidual(nn.Identity(), 0.25, "sample"))
    assert shown == "StochasticResidual(\n  p=0.25, method='sample'\n  (fn): Identity()\n)"


# ---- surgery ----


class Block(nn.Residual):
    def __init__(self, n):
        super().__init__(nn.Sequential(nn.Linear(n, n), nn.Tanh()))
        self.note, self.count = "mine", nn.Buffer([0])


class Scaled(nn.Residual):
    def forward(self, x):
        return 2 * super().forward(x)


def network(n=6):
    inner = nn.Residual(nn.Sequential(nn.Residual(nn.Linear(n, n)), nn.Tanh()))
    return nn.Sequential(Block(n), nn.ModuleDict({"a": inner})["a"], nn.Residual(lambda x: x))


def blocks(model):
    return [m for m in model.modules() if isinstance(m, nn.Residual)]


@pytest.mark.parametrize("how, rates", [
    ("linear", [0.1, 0.2, 0.3, 0.4]), ("uniform", [0.4, 0.4, 0.4, 0.4])
])  # fmt: skip
def test_all_residuals_get_their_rate(how, rates):
    model = network()
    generator = Generator(0)
    cf.apply_stochastic_depth(model, 0.4, how, "sample", generator=generator)
    assert [type(block) for block in blocks(model)] == [StochasticResidual] * 4
    assert [block.p for block in blocks(model)] == pytest.approx(rates)
    assert all(b.method == "sample" and b.generator is generator for b in blocks(model))
    again = cf.apply_stochastic_depth(model, 0.8, how)
    assert again is model and blocks(model)[-1].p == 0.8 and blocks(model)[0].method == "block"


def test_defaults_are_composers():
    assert StochasticResidual(nn.Identity()).p == 0.2
    assert StochasticDepth().settings["drop_rate"] == 0.2
    assert [b.p for b in blocks(cf.apply_stochastic_depth(network()))] == pytest.approx(
        [0.05, 0.1, 0.15, 0.2]
    )


def test_parameters_names_modes_hooks_and_attributes_stay():
    model = network().double()
    model[0].eval()
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, out: seen.append(module))
    optimizer = optim.Adam(model.parameters())
    model(Tensor(np.ones((3, 6)))).sum().backward()
    optimizer.step()
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    weights = model.parameters()
    seen.clear()
    remembered = {id(p): state for p, state in optimizer.state.items()}
    assert cf.apply_stochastic_depth(model, 0.5, optimizers=optimizer) is model
    after = model.state_dict()
    assert [*after] == [*before] and all(np.array_equal(after[k].numpy(), before[k]) for k in after)
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert all(optimizer.state[p] is remembered[id(p)] for p in weights)
    assert not model[0].training and model[1].training
    assert model[0].note == "mine" and "0.count" in after
    model(Tensor(np.ones((3, 6))))
    assert seen == [model[0]]
    handle.remove()
    model(Tensor(np.ones((3, 6))))
    assert len(seen) == 1


def test_evaluation_before_and_after_is_the_same_bit_for_bit():
    x = Tensor(np.random.default_rng(0).normal(size=(5, 6)), dtype="float32")
    model = network().eval()
    before = model(x).data.numpy()
    assert np.array_equal(cf.apply_stochastic_depth(model, 0.9)(x).data.numpy(), before)


def test_a_root_is_replaced_and_a_shared_block_stays_shared():
    assert cf.apply_stochastic_depth(nn.Residual(nn.Tanh()), 0.3).p == 0.3
    shared = nn.Residual(nn.Tanh())
    model = cf.apply_stochastic_depth(nn.Sequential(shared, nn.ReLU(), shared), 0.3)
    assert model[0] is model[2] and model[0].p == 0.3


def test_a_forward_of_ones_own_is_refused_and_nothing_is_changed():
    model = nn.Sequential(nn.Residual(nn.Tanh()), nn.Sequential(Scaled(nn.Tanh())))
    with pytest.raises(TypeError, match="Scaled '1.0' is a Residual with a forward.. of its own"):
        cf.apply_stochastic_depth(model)
    assert type(model[0]) is nn.Residual


@pytest.mark.parametrize("wrong, words", [
    ((12,), "a probability from 0 to 1, got 12"),
    ((0.2, "cosine"), "drop_distribution is one of 'linear', 'uniform'; got 'cosine'"),
    ((0.2, "linear", "batch"), "method is one of"),
])  # fmt: skip
def test_mistakes_are_named_at_both_doors(wrong, words):
    for door in (lambda *w: cf.apply_stochastic_depth(network(), *w), StochasticDepth):
        with pytest.raises(ValueError, match=words):
            door(*wrong)


def test_no_residual_is_a_warning_that_names_the_caller():
    with pytest.warns(NoEffectWarning, match="there is no Residual") as caught:
        cf.apply_stochastic_depth(nn.Sequential(nn.Linear(2, 2)))
    assert caught[0].filename == __file__


def test_copies_go_their_own_way():
    model = cf.apply_stochastic_depth(network(), 0.5, generator=Generator(0))
    twin, x = copy.deepcopy(model), Tensor(np.ones((4, 6), "float32"))
    first = [model(x).tolist() for _ in range(5)]
    assert first == [twin(x).tolist() for _ in range(5)]


# ---- in a Trainer ----


def train(folder=None, duration="20ba", algorithms=None, seed=0, own=False, lint=False, **settings):
    mi.manual_seed(seed)
    a = np.random.default_rng(0).normal(size=(46, 6)).astype("float32")
    data = TensorDataset(a, (a.sum(axis=1) > 0).astype("int64"))
    model = nn.Sequential(network(), nn.Linear(6, 2))
    if algorithms is None:
        generator = Generator(seed) if own else None
        algorithms = [StochasticDepth(0.6, "uniform", "sample", generator=generator)]
    trainer = Trainer(
        model, DataLoader(data, 8, shuffle=True), max_duration="20ba", progress_bar=False,
        optimizers=optim.SGD(model.parameters(), lr=0.1, momentum=0.9), algorithms=algorithms,
        save_folder=folder, save_interval="1ba", autoresume=folder is not None, lint=lint,
        **settings,
    )  # fmt: skip
    trainer.fit(duration)
    return trainer


def bits(trainer):
    states = trainer.state.model.state_dict().values()
    return [t.numpy().tobytes() for t in states]


@pytest.mark.parametrize("own", [False, True])
def test_training_goes_on_bit_for_bit(own, tmp_path):
    straight = train(own=own)
    inside = straight.state.model[0][0].generator
    assert inside is straight.state.algorithms[0].settings["generator"]
    assert (inside is not None) == own
    train(tmp_path, "9ba", own=own)
    resumed = train(tmp_path, "11ba", seed=5, own=own)
    assert resumed.state.timestamp.batch == 20 and bits(resumed) == bits(straight)
    assert bits(train(seed=5, own=own)) != bits(straight)


def test_both_doors_are_the_same():
    class ByHand:
        def match(self, event, state):
            return event == "init"

        def apply(self, event, state):
            cf.apply_stochastic_depth(state.model, 0.6, "uniform", "sample")

    assert bits(train()) == bits(train(algorithms=[ByHand()])) != bits(train(algorithms=[]))
    assert [event for event in Event if StochasticDepth().match(event, None)] == [Event.INIT]


def test_a_block_that_rests_is_no_mistake(recwarn):
    algorithms = [StochasticDepth(1.0, "uniform")]
    trainer = train(duration="1ba", algorithms=algorithms, lint=True)
    assert not [w for w in recwarn if "no gradient" in str(w.message)]
    assert all(p.grad is None for block in blocks(trainer.state.model) for p in block.parameters())
