"""The wiring: actors, cells and the table of kernel functions that a variant may replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors import lapic, userspace, vcpu
from actors.actor import Actor, Cell
from actors.devices import Device
from actors.guest import GuestMemory
from actors.lapic import Lapic
from actors.pcpu import Pcpu
from actors.vcpu import Vcpu

KernelFunction = Callable[..., Any]

#: The reference machine: 3.11, INIT and SIPI latched and taken by one xchg.
KERNEL_FUNCTIONS: dict[str, KernelFunction] = {
    f.__name__: f
    for f in (
        lapic.apic_accept_irq,
        lapic.apic_dm_fixed,
        lapic.apic_dm_init,
        lapic.apic_dm_startup,
        lapic.apic_test_and_set_irr,
        lapic.kvm_apic_accept_events,
        lapic.mp_state_after_init,
        vcpu.kvm_apic_has_events,
        vcpu.kvm_arch_vcpu_runnable,
        vcpu.kvm_emulate_halt,
        vcpu.kvm_vcpu_deliver_sipi_vector,
        vcpu.kvm_vcpu_reset,
        vcpu.vcpu_enter_guest_event,
        vcpu.vcpu_run_prologue,
        vcpu.vcpu_unblocked,
        userspace.get_mpstate_accept,
        userspace.set_mpstate,
    )
}


class Calls:
    """`vm.calls.<kernel_name>`: where a call goes upwards, or to a function that a variant replaces."""

    def __init__(self, replaced: Mapping[str, KernelFunction], own: Mapping[str, KernelFunction]) -> None:
        table = {**KERNEL_FUNCTIONS, **own}
        unknown = sorted(set(replaced) - set(table))
        if unknown:
            raise ValueError(
                f"a variant replaces {', '.join(unknown)}, which nothing calls through vm.calls\n"
                f"  replaceable: {', '.join(sorted(table))}"
            )
        self.__dict__.update(table)
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> KernelFunction:  # only reached for a name that is not in the table
        raise AttributeError(f"vm.calls has no {name}")


class Vm:
    """One virtual machine: empty, then `add_vcpus`, then what a scenario adds.

    `replaced` are the kernel functions that a variant replaces, `own` the functions that a scenario brings along; `size` is the
    number of vCPUs that a scenario is asked to make.
    """

    def __init__(
        self,
        replaced: Mapping[str, KernelFunction] | None = None,
        own: Mapping[str, KernelFunction] | None = None,
        size: int = 2,
    ) -> None:
        self.size = size
        self.actors: list[Actor] = []
        self.by_name: dict[str, Actor] = {}
        self.cells: list[Cell] = []
        self.calls = Calls(replaced or {}, own or {})
        self.vcpus: list[Vcpu] = []
        self.devices: list[Device] = []
        self.setup = ""  # the scenario's set-up, for checks that ask
        self.memory: GuestMemory | None = None
        self.groups: list[list[list[Actor]]] = []  # of interchangeable bundles
        self.fingerprints = False  # does the runtime want checkpoints?
        self.judged: frozenset[Actor] | None = None  # the actors that an end state is judged for; None: all

    def add_vcpus(self, count: int, vectors: tuple[int, ...] = ()) -> None:
        """`count` vCPUs, each with a LAPIC and a physical CPU of its own; `vectors`: the fixed interrupts they may get."""
        for i in range(count):
            pcpu = Pcpu(self, f"pcpu{i}")
            apic = Lapic(self, f"lapic{i}", vectors)
            self.vcpus.append(Vcpu(self, f"vcpu{i}", i, apic, pcpu))

    @property
    def pcpus(self) -> list[Pcpu]:
        """The physical CPUs: where IPIs arrive."""
        return [actor for actor in self.actors if isinstance(actor, Pcpu)]

    def in_question(self, actor: Actor) -> bool:
        """Is `actor` to be judged now?  All are, except in a search that takes the machine apart and judges one part at a time.

        A scenario whose `stuck`, `exists` and `outcome` look at several actors of a kind asks this for each of them.
        """
        return self.judged is None or actor in self.judged

    def add_actor(self, actor: Actor) -> None:
        """Register an actor; names are unique."""
        if actor.name in self.by_name:
            raise ValueError(f"two actors are called {actor.name}")
        self.actors.append(actor)
        self.by_name[actor.name] = actor
        if isinstance(actor, Device):
            self.devices.append(actor)

    def interchangeable(self, bundles: list[list[Actor]]) -> None:
        """Declare that these bundles (say, each vCPU with its LAPIC and physical CPU) do the same, each with what is its own.

        Call it when all of them have their cells.  A stateful search may then treat states as one that differ only by which
        bundle is in which state; it checks that the code bears the declaration out.  Values may name an actor of a bundle by
        its plain name, alone or within a tuple.  Raises ValueError if the bundles are not of one shape.
        """
        shapes = [
            [(type(a).__name__, [cell.name for cell in self.cells if cell.owner is a], [*a.state]) for a in bundle]
            for bundle in bundles
        ]
        names = [actor.name for group in (*self.groups, bundles) for bundle in group for actor in bundle]
        if len(set(names)) < len(names):
            raise ValueError(f"an actor is in two interchangeable bundles: {', '.join(sorted(names))}")
        for bundle, shape in zip(bundles, shapes, strict=True):
            if not shape or shape != shapes[0]:
                first, other = (", ".join(actor.name for actor in one) for one in (bundles[0], bundle))
                raise ValueError(
                    f"[{first}] and [{other}] are not of one shape, so they are not interchangeable\n"
                    f"  classes, cells and private state must agree, one by one: {shapes[0]} and {shape}"
                )
        self.groups.append([list(bundle) for bundle in bundles])

    def add_cell(self, owner: Actor, name: str, init: Any) -> Cell:
        """Register a cell; its index is its address between hosts."""
        cell = Cell(owner, name, init, len(self.cells))
        self.cells.append(cell)
        return cell

    def guest_memory(self, **cells: Any) -> GuestMemory:
        """Guest RAM with these named cells and initial values, reachable as `vm.memory.<name>`."""
        memory = GuestMemory(self, "memory")
        for name, init in cells.items():
            setattr(memory, name, memory.cell(name, init))
        self.memory = memory
        return memory

    def reset(self) -> None:
        """Every cell and every private state as at the start of a run."""
        self.reset_cells()
        for actor in self.actors:
            actor.reset()

    def reset_cells(self) -> None:
        """Every cell as at the start of a run, nobody waiting on it."""
        for cell in self.cells:
            cell.value = cell.init
            if cell.waiters:
                cell.waiters.clear()
