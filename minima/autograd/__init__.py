"""Automatic differentiation: what is recorded, the walk back over it, and what is made of the two."""

from .tape import (
    ShapeError,
    Tensor,
    as_array,
    enable_grad,
    from_dlpack,
    is_grad_enabled,
    no_grad,
    op,
    tensor,
    wrap,
    wrote,
)
from .reverse import HookHandle, backward, grad  # isort: skip - operators need these two

__all__ = [
    "HookHandle",
    "ShapeError",
    "Tensor",
    "as_array",
    "backward",
    "enable_grad",
    "from_dlpack",
    "grad",
    "is_grad_enabled",
    "no_grad",
    "op",
    "tensor",
    "wrap",
    "wrote",
]
