"""Optimizers: what to do with a gradient. Schedules of their learning rates, and bounds on gradients."""

from .optimizers import SGD, Adam, AdamW, Optimizer

__all__ = [
    "Adam",
    "AdamW",
    "Optimizer",
    "SGD",
]
