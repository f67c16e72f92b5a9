"""How we know that a derivative is right, and that an array library will do.

`gradcheck` and `vs_torch` check what was differentiated; `check_backend` checks what computes. This file only names
what is public, and is written by hand.
"""

from minima.testing.gradients import gradcheck, vs_torch
from minima.testing.conformance import check_backend  # isort: skip - its page comes later

__all__ = ["check_backend", "gradcheck", "vs_torch"]
