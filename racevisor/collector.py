"""Python's garbage collector, told that a search and a round keep much, of which next to nothing is part of a cycle.

With its defaults it takes a fifth of their time, and more the more is kept: it looks through all of it again and again.
"""

from __future__ import annotations

import gc

_OBJECTS = 50_000  # new objects before it looks for cycles; by default 700


def collect_rarely() -> None:
    """For a process that searches or plays, from now on."""
    gc.set_threshold(_OBJECTS, 20, 50)


def settle() -> None:
    """The same; and what has been made so far, the machine, stays: it need not be looked through at all."""
    gc.unfreeze()  # what was played before, if anything
    gc.collect()
    gc.freeze()
    collect_rarely()
