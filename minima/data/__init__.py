"""Data sets, the order of their samples, batches of them, and data to begin with."""

from .collections import (
    Characters,
    digits,
    fashion_mnist,
    moons,
    read_idx,
    spirals,
    topics,
    windows,
    xor,
)
from .datasets import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from .loading import DataLoader, collate, convert
from .samplers import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__all__ = [
    "BatchSampler",
    "Characters",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "RandomSampler",
    "SequentialSampler",
    "Subset",
    "SubsetRandomSampler",
    "TensorDataset",
    "WeightedRandomSampler",
    "collate",
    "convert",
    "digits",
    "fashion_mnist",
    "moons",
    "random_split",
    "read_idx",
    "spirals",
    "topics",
    "windows",
    "xor",
]
