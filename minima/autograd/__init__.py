"""Automatic differentiation: what is recorded, the walk back over it, and what is made of the two."""

from . import tape  # isort: skip - first, since operators lean on it
from . import functional
from .anomaly import detect_anomaly
from .checkpointing import checkpoint
from .functional import hessian, hvp, jacobian, jvp, vjp
from .reverse import HookHandle, backward, grad
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

__all__ = [
    "HookHandle",
    "ShapeError",
    "Tensor",
    "as_array",
    "backward",
    "checkpoint",
    "detect_anomaly",
    "enable_grad",
    "from_dlpack",
    "functional",
    "grad",
    "hessian",
    "hvp",
    "is_grad_enabled",
    "jacobian",
    "jvp",
    "no_grad",
    "op",
    "tensor",
    "vjp",
    "wrap",
    "wrote",
]
