"""Every error of racevisor says what, where, and what to type next; each knows its exit status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RacevisorError(Exception):
    """Base of all; exit status 2: the request cannot be carried out as it was made."""

    exit_status = 2


class Unfinished(Exception):
    """A command met an error, its cause, when it had results already: they are printed, and the error after them.

    The message says where it stopped and what to type next; `results` is what --json has so far.
    """

    def __init__(self, message: str, results: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.results = results


class UsageError(RacevisorError):
    """Unknown scenario, variant, set-up, memory model, or a scenario file that cannot be used."""


class UndeclaredRead(UsageError):
    """A check looked at something that it did not declare: a reduced search may skip the order in which it looks different."""


class Unhashable(RacevisorError, TypeError):
    """A stateful search was given a value that it cannot recognise when it meets it again."""


class TraceError(RacevisorError):
    """A trace file that is truncated, damaged, of another version, or of another scenario."""


class NotDeterministic(RacevisorError):
    """A schedule did not reproduce: replay diverged, or two runs of one schedule differ.  Exit status 3."""

    exit_status = 3


class ClusterError(RacevisorError):
    """Ray did not answer, or an actor of it died.  Exit status 4."""

    exit_status = 4
