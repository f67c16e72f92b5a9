"""Methods of training, which change a model or how it is trained; and surgery, which they are made of.

Each is a class for the Trainer; as functions of a model they are in `minima.functional`.
"""

from .clipping import GradientClipping
from .freezing import LayerFreezing
from .gyro import GyroDropout
from .lens import Lens, gyro_lens, subnetwork
from .stochastic_depth import StochasticDepth, StochasticResidual
from .surgery import NoEffectWarning, replace

__all__ = [
    "GradientClipping",
    "GyroDropout",
    "LayerFreezing",
    "Lens",
    "NoEffectWarning",
    "StochasticDepth",
    "StochasticResidual",
    "gyro_lens",
    "replace",
    "subnetwork",
]
