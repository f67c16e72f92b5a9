"""Networks: what a model is made of. Layers are modules; `functional` has them as plain functions."""

from . import functional, hooks
from .containers import ModuleDict, ModuleList, Sequential
from .blockwise import GyroSequential
from .dropout import Dropout
from .fused import FusedDropoutLayerNorm, FusedLayerNorm
from .gyro import GyroDropout, GyroSchedule
from .layers import (
    GELU,
    Embedding,
    Flatten,
    Identity,
    LeakyReLU,
    Linear,
    LogSoftmax,
    ReLU,
    Residual,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
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
    Parameter,
    _child_modules,
    _unpack_params,
)
from .normalization import BatchNorm1d, BatchNorm2d, LayerNorm, LayerNorm1d
from .summary import Summary, summary

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Buffer",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "FusedDropoutLayerNorm",
    "FusedLayerNorm",
    "GELU",
    "GyroDropout",
    "GyroSequential",
    "GyroSchedule",
    "HuberLoss",
    "Identity",
    "KLDivLoss",
    "L1Loss",
    "LayerNorm",
    "LayerNorm1d",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "Summary",
    "Tanh",
    "functional",
    "hooks",
    "summary",
]
