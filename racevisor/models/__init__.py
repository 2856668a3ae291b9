"""Small machines whose state counts are known, for tests, benchmarks and self-checks; each function builds a fresh World."""

from racevisor.models.mmu_notifier import mmu_notifier
from racevisor.models.protocols import peterson, two_phase_commit

__all__ = ["mmu_notifier", "peterson", "two_phase_commit"]
