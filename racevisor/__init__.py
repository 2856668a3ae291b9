"""The laboratory: run a machine under control, search it, replay it.  What a scenario file imports is here."""

from actors.thread import Thread
from actors.vm import Vm
from racevisor.monitor import Monitor, Violation
from racevisor.scenario import Always, Claim, Never, Scenario, Setup, Sometimes, Variant
from racevisor.step import Step
from racevisor.together import alike, some

__version__ = "0.1.0"

__all__ = [
    "Always",
    "Claim",
    "Monitor",
    "Never",
    "Scenario",
    "Setup",
    "Sometimes",
    "Step",
    "Thread",
    "Variant",
    "Violation",
    "Vm",
    "__version__",
    "alike",
    "some",
]
