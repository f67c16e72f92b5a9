"""Training: the loop, written once, and what surrounds it: time, events, loggers, checkpoints."""

from .batches import Accuracy, Mean, Metric
from .callbacks import (
    EarlyStopper,
    LRFinder,
    LRMonitor,
    NaNStop,
    SpeedMonitor,
)
from .events import Algorithm, Callback, Event, State
from .loggers import CSVLogger, History, InMemoryLogger, JSONLLogger, ProgressBar
from .time import Time, Timestamp
from .trainer import Trainer

__all__ = [
    "Accuracy",
    "Algorithm",
    "CSVLogger",
    "Callback",
    "EarlyStopper",
    "Event",
    "History",
    "InMemoryLogger",
    "JSONLLogger",
    "LRFinder",
    "LRMonitor",
    "Mean",
    "Metric",
    "NaNStop",
    "ProgressBar",
    "SpeedMonitor",
    "State",
    "Time",
    "Timestamp",
    "Trainer",
]
