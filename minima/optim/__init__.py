"""Optimizers: what to do with a gradient. Schedules of their learning rates, and bounds on gradients."""

from .adaptive import AdaGrad, NAdam, RAdam, RMSProp
from .clipping import clip_grad_norm_, clip_grad_value_
from .optimizers import SGD, Adam, AdamW, Optimizer

__all__ = [
    "AdaGrad",
    "Adam",
    "AdamW",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "SGD",
    "clip_grad_norm_",
    "clip_grad_value_",
]
