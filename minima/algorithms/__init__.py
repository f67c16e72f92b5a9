"""Methods of training, which change a model or how it is trained; and surgery, which they are made of.

Each is a class for the Trainer; as functions of a model they are in `minima.functional`.
"""

from .clipping import GradientClipping
from .ema import EMA
from .freezing import LayerFreezing
from .fused_layernorm import FusedLayerNorm
from .gyro import GyroDropout
from .label_smoothing import LabelSmoothing
from .lens import Lens, gyro_lens, subnetwork
from .mixup import MixUp
from .stochastic_depth import StochasticDepth, StochasticResidual
from .surgery import NoEffectWarning, replace

__all__ = [
    "EMA",
    "FusedLayerNorm",
    "GradientClipping",
    "GyroDropout",
    "LabelSmoothing",
    "LayerFreezing",
    "Lens",
    "MixUp",
    "NoEffectWarning",
    "StochasticDepth",
    "StochasticResidual",
    "gyro_lens",
    "replace",
    "subnetwork",
]
