"""Networks: what a model is made of. Layers are modules; `functional` has them as plain functions."""

from . import functional
from .containers import ModuleDict, ModuleList, Sequential
from .dropout import Dropout
from .hooks import HookHandle
from .layers import GELU, Flatten, Identity, Linear, ReLU, Residual, Sigmoid, Softmax, Tanh
from .losses import CrossEntropyLoss, MSELoss
from .module import (
    Buffer,
    Module,
    Parameter,
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
    "HookHandle",
    "Identity",
    "LayerNorm",
    "LayerNorm1d",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleDict",
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
