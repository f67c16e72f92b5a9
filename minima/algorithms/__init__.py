"""Methods of training, which change a model or how it is trained; and surgery, which they are made of."""

from .surgery import NoEffectWarning, replace

__all__ = ["NoEffectWarning", "replace"]
