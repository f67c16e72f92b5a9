"Fused layer norm as a method: the same Parameters, the same numbers, both doors."

import warnings

import numpy as np
import pytest

import minima.functional as cf
from minima import nn, optim
from minima.algorithms import FusedLayerNorm, NoEffectWarning
from minima.autograd import Tensor, grad
from minima.data import DataLoader, TensorDataset
from minima.random import manual_seed
from minima.trainer import Trainer

LAYERS = [
    lambda: nn.LayerNorm(6),
    lambda: nn.LayerNorm1d(6, eps=1e-3),
    lambda: nn.LayerNorm(6, elementwise_affine=False),
    lambda: nn.LayerNorm(6, bias=False),
    lambda: nn.LayerNorm((4, 6), eps=0.1),
    lambda: nn.LayerNorm(6, dtype="float64"),
]


def some(shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def network():
    manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def ulps(found, expected):
    "The largest difference in units in the last place of the largest number."
    return abs(found - expected).max() / np.spacing(abs(expected).max())


@pytest.mark.parametrize("make", LAYERS)
def test_numbers_parameters_and_settings_are_those_of_before(make):
    old = make()
    for i, p in enumerate(old.parameters()):
        p.data = Tensor(some(p.shape, p.dtype, i))
    dtype = "float64" if old.weight is not None and old.weight.dtype == "float64" else "float32"
    x, g = Tensor(some((5, 4, 6), dtype), requires_grad=True), some((5, 4, 6), dtype, 9)
    parameters = [*old.parameters()]
    expected = [y := old(x), *grad(y, [x, *parameters], g)]
    new = cf.apply_fused_layernorm(old)
    assert type(new) is nn.FusedLayerNorm and isinstance(new, nn.LayerNorm)
    assert (new.weight, new.bias) == (old.weight, old.bias) or new.weight is old.weight
    assert all(p is q for p, q in zip(new.parameters(), parameters, strict=True))
    for name in ("eps", "normalized_shape", "elementwise_affine", "training"):
        assert getattr(new, name) == getattr(old, name)
    found = [y := new(x), *grad(y, [x, *parameters], g)]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == dtype and ulps(a.data.numpy(), b.data.numpy()) <= 8


def test_everywhere_in_a_model_with_hooks_modes_ties_and_optimizers():
    model = nn.Sequential(network(), nn.Residual(nn.LayerNorm(3)), nn.LayerNorm(3).eval())
    model[2].weight = model[1].fn.weight
    optimizer = optim.Adam(model.parameters())
    seen, before = [], [*model.parameters()]
    model[0][1].register_forward_hook(lambda module, args, y: seen.append(type(module)))
    model(Tensor(some((2, 6)))).sum().backward()
    optimizer.step()
    state = {id(p) for p in optimizer.state}
    assert cf.apply_fused_layernorm(model, optimizer) is model
    assert all(p is q for p, q in zip(model.parameters(), before, strict=True))
    assert {id(p) for p in optimizer.state} == state
    assert model[2].weight is model[1].fn.weight
    assert [type(m) for m in (model[0][1], model[1].fn, model[2])] == [nn.FusedLayerNorm] * 3
    assert not model[2].training and model[0][1].training
    model(Tensor(some((2, 6))))
    assert seen == [nn.LayerNorm, nn.FusedLayerNorm]


class Doubled(nn.LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.LayerNorm):
    name = "it computes as its parent does"


def test_subclasses_are_replaced_unless_they_compute_something_else():
    model = cf.apply_fused_layernorm(nn.Sequential(Doubled(4), Named(4)))
    assert [type(m) for m in model] == [Doubled, nn.FusedLayerNorm]


def test_what_is_fused_already_is_left_alone_with_a_warning():
    fused = nn.FusedDropoutLayerNorm(4)
    for model in (network()[0], nn.FusedLayerNorm(4), fused, nn.Sequential(fused, Doubled(4))):
        with pytest.warns(NoEffectWarning, match="no layer_norm"):
            assert cf.apply_fused_layernorm(model) is model
    assert type(fused.layer_norm) is nn.LayerNorm


def fitted(model, *algorithms):
    data = TensorDataset(some((20, 6)), np.arange(20) % 3)
    settings = dict(optimizers=optim.SGD(model.parameters(), lr=0.1), progress_bar=False)
    loader = DataLoader(data, batch_size=5)
    trainer = Trainer(model, loader, max_duration="2ep", algorithms=algorithms, **settings)
    trainer.fit()
    return trainer.state.model


def test_in_a_trainer_it_learns_what_it_would_have_learned():
    plain, fused = fitted(network()), fitted(network(), FusedLayerNorm())
    assert type(fused[1]) is nn.FusedLayerNorm and [*plain.state_dict()] == [*fused.state_dict()]
    for a, b in zip(plain.parameters(), fused.parameters()):
        np.testing.assert_allclose(b.data, a.data, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(fused, FusedLayerNorm())  # as when a checkpoint is resumed
    with pytest.warns(NoEffectWarning):
        fitted(nn.Linear(6, 3), FusedLayerNorm())


def test_a_trainer_operates_when_it_is_made_and_on_what_is_left():
    loader = DataLoader(TensorDataset(some((4, 6)), np.arange(4) % 3), batch_size=2)
    half = nn.Sequential(nn.FusedLayerNorm(6), nn.LayerNorm(6), nn.Linear(6, 3))
    for model in (network(), half):
        trainer = Trainer(model, loader, max_duration="1ep", algorithms=[FusedLayerNorm()])
        kinds = [type(m) for m in trainer.state.model]
        assert nn.FusedLayerNorm in kinds and nn.LayerNorm not in kinds
