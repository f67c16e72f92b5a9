"""Networks: what a model is made of. Layers are modules; `functional` has them as plain functions."""

from . import functional
from .dropout import Dropout
from .layers import GELU, Flatten, Identity, Linear, ReLU, Residual, Sigmoid, Softmax, Tanh
from .losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
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
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GELU",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "LayerNorm",
    "LayerNorm1d",
    "Linear",
    "MSELoss",
    "Module",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Tanh",
    "functional",
]
