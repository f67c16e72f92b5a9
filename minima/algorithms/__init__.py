"""Methods of training, which change a model or how it is trained; and surgery, which they are made of.

Each is a class for the Trainer; as functions of a model they are in `minima.functional`.
"""

from .fused_layernorm import FusedLayerNorm
from .gyro import GyroDropout
from .lens import Lens, gyro_lens, subnetwork
from .surgery import NoEffectWarning, replace

__all__ = [
    "FusedLayerNorm",
    "GyroDropout",
    "Lens",
    "NoEffectWarning",
    "gyro_lens",
    "replace",
    "subnetwork",
]
