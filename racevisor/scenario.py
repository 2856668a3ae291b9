"""Scenario, variant, set-up, claim: what a race is, in the words of whoever describes it."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from actors.vm import Calls, Vm
from racevisor.errors import UsageError
from racevisor.memory import MODELS
from racevisor.monitor import Monitor, Violation
from racevisor.world import World

#: The kernel's three words for how often the bad outcome is reached.
Never, Sometimes, Always = "Never", "Sometimes", "Always"

#: What a variant claims about a set-up: one word, or one per memory model (models not named: Never).
Claim = str | Mapping[str, str]


@dataclass(frozen=True)
class Variant:
    """One version of the code: the functions it replaces, and what it claims for the set-ups where it is not Never."""

    about: str
    replaces: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)
    #: checks that this variant does not promise, with the reason
    exempt: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """Who runs and how it starts; a scenario's `build` reads it."""

    about: str
    #: the variants it is there for, () for all; the others are no cells of the table, but are searched where they are named
    variants: tuple[str, ...] = ()


class Scenario:
    """Subclass it in a file of your own; one file is one race.

    A subclass gives `variants`, perhaps `setups`, `build(vm, setup)`, and says what is bad: `exists(vm)` for an outcome at the
    end (True or a sentence), `monitors(vm)` for what must hold at every step, `stuck(vm)` for what must not be left undone.
    """

    #: the name on the command line; by default the file's name
    name: ClassVar[str] = ""
    patch: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, Variant]] = {}
    setups: ClassVar[Mapping[str, Setup]] = {"default": Setup("the scenario as it is written")}
    #: the variant that is the fix: no bad outcome is left in it
    fixed: ClassVar[str] = "after"
    #: the set-up whose race live rounds meet most often: what a live run tries first; "": the first set-up
    live: ClassVar[str] = ""
    #: what every variant claims for a set-up unless it says otherwise
    claims: ClassVar[Mapping[str, Claim]] = {}
    #: functions of the scenario's own that variants may replace, reached as `vm.calls.<name>`
    functions: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    #: step bound of one execution with `vcpus` vCPUs; more get more
    max_steps: ClassVar[int] = 5_000
    #: how many vCPUs `build` makes unless it is asked for more, which it finds in `vm.size`
    vcpus: ClassVar[int] = 2
    #: the most it can be asked for; 0: it does not scale
    max_vcpus: ClassVar[int] = 0

    def build(self, vm: Vm, setup: str) -> None:
        """Add vCPUs, threads, guest memory to the empty machine."""
        raise UsageError(f"scenario {type(self).__name__} has no build(self, vm, setup): nobody runs in it")

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety: what must hold at every step.  A monitor declares what it watches and what it reads."""
        return []

    def exists(self, vm: Vm) -> bool | str:
        """The outcome that is hunted, at an end state."""
        return False

    def stuck(self, vm: Vm) -> list[Violation]:
        """Liveness: what must not be left undone when nothing can move."""
        return []

    def outcome(self, vm: Vm) -> str:
        """One word or line that names the end state, for tables of outcomes."""
        return "end"


def claim(scenario: Scenario, variant: Variant, setup: str, memory: str) -> str:
    """The word claimed for one cell of the table."""
    everyone = scenario.claims.get(setup, Never)
    entry = variant.claims.get(setup, variant.claims.get("*", everyone))
    return entry if isinstance(entry, str) else entry.get(memory, Never)


def in_table(scenario: Scenario, variant: str, setup: str) -> bool:
    """Does the scenario's table have cells for this variant in this set-up?"""
    wanted = scenario.setups[setup].variants
    return not wanted or variant in wanted


def default_setup(scenario: Scenario, variant: str, memory: str) -> str:
    """Where a variant runs live: the first set-up in which it is claimed to go wrong, or else in which the first variant is."""
    first = next(iter(scenario.variants))
    setups = dict.fromkeys([*filter(None, [scenario.live]), *scenario.setups])
    for name in (variant, first):
        for setup in setups:
            if claim(scenario, scenario.variants[name], setup, memory) != Never and in_table(scenario, variant, setup):
                return setup
    return next(iter(scenario.setups))


@dataclass(frozen=True)
class Source:
    """A scenario file as text: what travels to other hosts, and what a trace was recorded from."""

    path: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Case:
    """One cell: a scenario in one variant, set-up and memory model, with `vcpus` vCPUs (None: the scenario's own number)."""

    def __init__(
        self, scenario: Scenario, source: Source, variant: str, setup: str, memory: str, vcpus: int | None = None
    ) -> None:
        self.scenario = scenario
        self.source = source
        self.variant_name = require("variant", variant, scenario.variants, scenario.name)
        self.setup = require("set-up", setup, scenario.setups, scenario.name)
        self.memory = require("memory model", memory, MODELS, scenario.name)
        self.variant = scenario.variants[variant]
        self.vcpus = _size(scenario, vcpus)

    def like(self, variant: str) -> Case:
        """The same machine with another version of the code."""
        return Case(self.scenario, self.source, variant, self.setup, self.memory, self.vcpus)

    @property
    def max_steps(self) -> int:
        """Step bound of one execution: the scenario's, in proportion to the number of vCPUs."""
        return -(-self.scenario.max_steps * self.vcpus // self.scenario.vcpus)

    @property
    def claimed(self) -> str:
        """Never, Sometimes or Always."""
        return claim(self.scenario, self.variant, self.setup, self.memory)

    def vm(self, calls: Callable[[Calls], Calls] | None = None) -> Vm:
        """A fresh machine of this case; `calls` makes what is put in the place of its vm.calls before it is built."""
        vm = Vm(self.variant.replaces, self.scenario.functions, self.vcpus)
        if calls is not None:
            vm.calls = calls(vm.calls)
        vm.setup = self.setup
        self.scenario.build(vm, self.setup)
        return vm

    def world(
        self,
        *,
        max_steps: int | None = None,
        automata: bool = False,
        functions: bool = False,
        calls: Callable[[Calls], Calls] | None = None,
    ) -> World:
        """A World over a fresh machine, with the scenario's checks."""
        vm = self.vm(calls)
        exempt = self.variant.exempt
        monitors = [m for m in self.scenario.monitors(vm) if m.check not in exempt]
        return World(
            vm,
            self.memory,
            monitors=monitors,
            check=self.check,
            outcome=self.scenario.outcome,
            max_steps=max_steps or self.max_steps,
            automata=automata,
            functions=functions,
        )

    def check(self, vm: Vm) -> list[Violation]:
        """Judge an end state."""
        found = [v for v in self.scenario.stuck(vm) if v.check not in self.variant.exempt]
        exists = self.scenario.exists(vm)
        if exists:
            found.append(Violation("exists", exists if isinstance(exists, str) else self.scenario.outcome(vm)))
        return found

    def __str__(self) -> str:
        size = "" if self.vcpus == self.scenario.vcpus else f" with {self.vcpus} vCPUs"
        return f"{self.scenario.name} {self.variant_name}/{self.setup}/{self.memory}{size}"


def require(kind: str, name: str, known: Any, scenario: str) -> str:
    """`name`, or a UsageError that lists what there is."""
    if name not in known:
        raise UsageError(f"{scenario} has no {kind} {name!r}\n  {kind}s: {', '.join(known)}\n  see: racevisor show {scenario}")
    return name


def _size(scenario: Scenario, asked: int | None) -> int:
    least, most = scenario.vcpus, max(scenario.vcpus, scenario.max_vcpus)
    if asked is None or asked == least:
        return least
    if not scenario.max_vcpus:
        raise UsageError(
            f"{scenario.name} has {least} vCPUs and does not scale; {asked} were asked for\n"
            f"  leave out --vcpus, or let its build() make vm.size vCPUs and say so:  max_vcpus = 64"
        )
    if not least <= asked <= most:
        raise UsageError(f"{scenario.name} can have {least} to {most} vCPUs; {asked} were asked for\n  the most:  --vcpus {most}")
    return asked


BUILT_IN = Path(__file__).resolve().parent.parent / "scenarios"


def built_in() -> list[str]:
    """Names of the scenarios that come with racevisor."""
    return sorted(p.stem for p in BUILT_IN.glob("*.py") if not p.name.startswith("_"))


def load(name: str) -> tuple[Scenario, Source]:
    """A scenario by name, or by path to a file of your own."""
    path = Path(name)
    if name.endswith(".py") or "/" in name:
        if not path.is_file():
            raise UsageError(f"there is no scenario file {name}\n  built in: {', '.join(built_in())}\n  see: racevisor list")
    else:
        path = BUILT_IN / f"{name}.py"
        if not path.is_file():
            raise UsageError(
                f"there is no scenario {name!r}\n  built in: {', '.join(built_in())}\n  your own: give the path of its .py file"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read scenario file {name}: {error}") from error
    source = Source(name, text)
    return from_source(source), source


def from_source(source: Source) -> Scenario:
    """Execute a scenario's text in a module of its own and make its one Scenario."""
    stem = Path(source.path).stem
    module = ModuleType(f"scenario_{stem}")
    module.__file__ = source.path
    try:
        exec(compile(source.text, source.path, "exec"), module.__dict__)  # scenario files are code that the user chose to run
    except Exception as error:
        where = getattr(error, "lineno", None)
        if where is None:
            frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
            where = next((f.lineno for f in reversed(frames) if f.filename == source.path), "?")
        raise UsageError(f"scenario file {source.path} does not import: line {where}: {type(error).__name__}: {error}") from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Scenario) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UsageError(
            f"scenario file {source.path} defines {len(found)} scenarios, it must define exactly one\n"
            f"  class MyRace(Scenario): ...    with   from racevisor import Scenario, Variant"
        )
    scenario = found[0]()
    if not scenario.name:
        type(scenario).name = stem
    if not scenario.variants:
        raise UsageError(f'scenario {scenario.name} has no variants\n  variants = {{"before": Variant("what it does", ...)}}')
    if scenario.live:
        require("set-up", scenario.live, scenario.setups, scenario.name)
    for setup in scenario.setups.values():
        for name in setup.variants:
            require("variant", name, scenario.variants, scenario.name)
    return scenario
