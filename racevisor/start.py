"""Ctrl-C in the first tenth of a second of a command, in which Python imports what it is made of."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

#: The exit status of what Ctrl-C has ended.
INTERRUPTED = 130


def guard() -> None:
    """From here on Ctrl-C ends the process at once: there is nothing to clean up, and nothing to tell.

    An exception would be printed with a traceback of whatever is being imported, or be swallowed there.  Nothing is changed where
    somebody else has settled what Ctrl-C does: a program that uses us as a library, or nohup.
    """
    _change(signal.default_int_handler, _leave)


def release() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    _change(_leave, signal.default_int_handler)


def _change(old: object, new: Callable[[int, FrameType | None], object]) -> None:
    if signal.getsignal(signal.SIGINT) is old:
        with suppress(ValueError):  # not the main thread, which alone is told of signals
            signal.signal(signal.SIGINT, new)


def _leave(_number: int, _frame: FrameType | None) -> None:
    if "--json" in sys.argv:
        os.write(1, b'{"error": "interrupted", "exit_status": 130}\n')
    os.write(2, b"racevisor: interrupted\n")
    os._exit(INTERRUPTED)
