"""Training: the loop, written once, and what surrounds it: time, events, loggers, checkpoints."""

from .batches import Accuracy, Mean, Metric
from .events import Algorithm, Callback, Event, State
from .loggers import CSVLogger, History, InMemoryLogger, JSONLLogger, ProgressBar
from .time import Time, Timestamp
from .trainer import Trainer

__all__ = [
    "Accuracy",
    "Algorithm",
    "CSVLogger",
    "Callback",
    "Event",
    "History",
    "InMemoryLogger",
    "JSONLLogger",
    "Mean",
    "Metric",
    "ProgressBar",
    "State",
    "Time",
    "Timestamp",
    "Trainer",
]
