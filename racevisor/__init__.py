"""The laboratory: run a machine under control, search it, replay it.  What a scenario file imports is here.

It is loaded when it is asked for: the command line comes by here first, and answers Ctrl-C before anything that takes time.
"""

TYPE_CHECKING = False  # as in typing, which takes longer to import than all of this

if TYPE_CHECKING:
    from actors.thread import Thread
    from actors.vm import Vm
    from racevisor.monitor import Monitor, Violation
    from racevisor.scenario import Always, Claim, Never, Scenario, Setup, Sometimes, Variant
    from racevisor.step import Step
    from racevisor.together import alike, some
else:
    _HOMES = ("actors.thread", "actors.vm", "racevisor.monitor", "racevisor.scenario", "racevisor.step", "racevisor.together")

    def __getattr__(name: str) -> object:
        """One of the names below, when it is asked for."""
        from importlib import import_module

        if name in __all__:
            for module in _HOMES:
                if hasattr(home := import_module(module), name):
                    return getattr(home, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
