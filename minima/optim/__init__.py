"""Optimizers: what to do with a gradient. Schedules of their learning rates, and bounds on gradients."""

from .adaptive import AdaGrad, NAdam, RAdam, RMSProp
from .clipping import clip_grad_norm_, clip_grad_value_
from .optimizers import SGD, Adam, AdamW, Optimizer
from .policies import ChainedScheduler, OneCycleLR, ReduceLROnPlateau, SequentialLR
from .schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    StepLR,
)

__all__ = [
    "AdaGrad",
    "Adam",
    "AdamW",
    "ChainedScheduler",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "NAdam",
    "OneCycleLR",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "ReduceLROnPlateau",
    "SGD",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
]
