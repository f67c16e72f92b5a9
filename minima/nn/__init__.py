"""Networks: what a model is made of. Layers are modules; `functional` has them as plain functions."""

from . import functional
from .dropout import Dropout
from .layers import GELU, Flatten, Identity, Linear, ReLU, Residual, Sigmoid, Softmax, Tanh
from .losses import CrossEntropyLoss, MSELoss
from .module import (
    Buffer,
    Module,
    ModuleList,
    Parameter,
    Sequential,
    _child_modules,
    _unpack_params,
)
from .normalization import BatchNorm1d, BatchNorm2d, LayerNorm, LayerNorm1d

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GELU",
    "Identity",
    "LayerNorm",
    "LayerNorm1d",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "functional",
]
