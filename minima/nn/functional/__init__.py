"""The operations of a network as plain functions: what layers compute, and how wrong the answer is."""

from .layers import (
    batch_norm,
    dropout,
    flatten,
    gelu,
    layer_norm,
    linear,
    log_softmax,
    one_hot,
    relu,
    sigmoid,
    softmax,
    tanh,
)
from .losses import cross_entropy, mse_loss

__all__ = [
    "batch_norm",
    "cross_entropy",
    "dropout",
    "flatten",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "mse_loss",
    "one_hot",
    "relu",
    "sigmoid",
    "softmax",
    "tanh",
]
