"""A function of Tensors, recorded once and replayed as a flat list of calls. Written by hand.

`recorded` says what is written down, `recorder` who writes, `slots` what a function holds, `runs`
and `fusion` which calls become one loop, `plan` how a list of calls becomes a program, `replays`
when it may be run again.
"""

from minima.capture.recorded import CaptureError
from minima.capture.replays import Captured, capture

__all__ = ["Captured", "CaptureError", "capture"]
