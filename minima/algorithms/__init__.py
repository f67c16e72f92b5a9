"""Methods of training, which change a model or how it is trained; and surgery, which they are made of."""

from .lens import Lens, gyro_lens, subnetwork
from .surgery import NoEffectWarning, replace

__all__ = ["Lens", "NoEffectWarning", "gyro_lens", "replace", "subnetwork"]
