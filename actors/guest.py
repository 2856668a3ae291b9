"""What a guest program may do, and how a virtual CPU carries it.

A guest program is a small coroutine over guest instructions: `async def ap(cpu): await cpu.hlt()`.  The vCPU thread runs it
inside guest mode, one instruction a step, and looks for an interrupt before each.  Instructions that KVM intercepts (HLT, the
ICR and EOI registers) end the guest's turn and come back as exits.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE, Op, await_eq, smp_mb, xchg

APIC_DM_FIXED, APIC_DM_NMI, APIC_DM_INIT, APIC_DM_STARTUP = 0, 4, 5, 6
#: ICR destination shorthands: none, self, all including self, all excluding self
APIC_DEST_NOSHORT, APIC_DEST_SELF, APIC_DEST_ALLINC, APIC_DEST_ALLBUT = 0, 1, 2, 3
#: the physical destination that every xAPIC takes for its own; every x2APIC, whose ids have 32 bits
APIC_BROADCAST, X2APIC_BROADCAST = 0xFF, 0xFFFFFFFF

GuestProgram = Callable[["GuestCpu"], Coroutine["Insn", Any, Any]]


class Insn:
    """One guest instruction; `exits` tells the intercepted ones."""

    __slots__ = ("args", "kind", "op")

    def __init__(self, kind: str, args: tuple[Any, ...] = (), op: Op | None = None) -> None:
        self.kind = kind
        self.args = args
        self.op = op

    def __await__(self) -> Generator[Insn, Any, Any]:
        return (yield self)


class GuestCpu:
    """The instructions, as a guest program sees them."""

    def __init__(self) -> None:
        self.label = ""

    def here(self, label: str) -> None:
        """Promise that the program depends on no local variable from here on; lets a search close the loop of an idle CPU."""
        self.label = label

    def write_icr(self, dest: int, mode: int, vector: int = 0, *, level: bool = True, shorthand: int = 0) -> Insn:
        """Write the interrupt command register: an IPI of delivery mode `mode` to APIC id `dest`."""
        return Insn("icr", (dest, mode, vector, level, shorthand))

    def hlt(self) -> Insn:
        """Halt until an interrupt."""
        return Insn("hlt")

    def eoi(self) -> Insn:
        """Write the EOI register."""
        return Insn("eoi")

    def sti(self) -> Insn:
        """Allow interrupts."""
        return Insn("sti")

    def cli(self) -> Insn:
        """Mask interrupts."""
        return Insn("cli")

    def compute(self) -> Insn:
        """Run for ever without an intercepted instruction; only an interrupt leaves it."""
        return Insn("compute")

    def load(self, cell: Cell) -> Insn:
        """Load guest memory."""
        return Insn("memory", op=READ_ONCE(cell))

    def store(self, cell: Cell, value: Any) -> Insn:
        """Store to guest memory."""
        return Insn("memory", op=WRITE_ONCE(cell, value))

    def xchg(self, cell: Cell, value: Any) -> Insn:
        """Locked exchange in guest memory; returns the old value."""
        return Insn("memory", op=xchg(cell, value))

    def mfence(self) -> Insn:
        """Full barrier."""
        return Insn("memory", op=smp_mb())

    def wait_until(self, cell: Cell, value: Any) -> Insn:
        """Spin until the cell holds `value`, in one step.  No interrupt gets through: store `value` before one is sent."""
        return Insn("memory", op=await_eq(cell, value))

    async def spin_until(self, cell: Cell, value: Any, times: int) -> bool:
        """Load until the cell holds `value`, at most `times` times; says whether it did."""
        for _ in range(times):
            if await self.load(cell) == value:
                return True
        return False


class GuestMemory(Actor):
    """Guest RAM: a scenario adds the cells that its guest programs share."""


async def idle(cpu: GuestCpu) -> None:
    """An operating system's idle loop: interrupts on, HLT, again."""
    await cpu.sti()
    while True:
        cpu.here("idle")
        await cpu.hlt()


async def halt(cpu: GuestCpu) -> None:
    """Halt with interrupts off: what a freshly started CPU does when there is nothing to do."""
    while True:
        cpu.here("halt")
        await cpu.hlt()


async def busy(cpu: GuestCpu) -> None:
    """Compute for ever; interrupts on."""
    await cpu.sti()
    cpu.here("busy")
    await cpu.compute()


async def irq_handler(cpu: GuestCpu) -> None:
    """The default handler of a vectored interrupt."""
    await cpu.eoi()


async def nmi_handler(cpu: GuestCpu) -> None:
    """The default NMI handler does nothing."""


class GuestContext:
    """The guest half of a vCPU: a stack of running programs (interrupt handlers on top) and the instruction at RIP."""

    def __init__(self) -> None:
        self.cpu = GuestCpu()
        self.stack: list[tuple[Coroutine[Insn, Any, Any], list[Any]]] = []
        self.insn: Insn | None = None

    def start(self, program: GuestProgram, cs_base: int) -> None:
        """Begin the program at `cs_base` afresh: what a reset does to whatever ran before."""
        self.close()
        self.interrupt(program, f"{cs_base:#x}")

    def interrupt(self, handler: GuestProgram, which: str) -> None:
        """Run `handler`, then go on where the guest was; `which` tells it from the vCPU's other programs."""
        pending, self.insn = self.insn, None
        self.stack.append((handler(self.cpu), [which, pending]))

    def fetch(self) -> Insn:
        """The instruction at RIP; it stays there until `retire`."""
        if self.insn is None:
            self._advance(None)
        assert self.insn is not None
        return self.insn

    def retire(self, result: Any = None) -> None:
        """The instruction is done with this result; step to the next."""
        self.insn = None
        self._advance(result)

    def _advance(self, result: Any) -> None:
        while True:
            program, trail = self.stack[-1]
            try:
                self.cpu.label = ""
                self.insn = program.send(result)
                if self.cpu.label:
                    del trail[2:]
                    trail.append(self.cpu.label)
                else:
                    trail.append(result if self.insn.kind == "memory" or result is not None else len(trail))
                return
            except StopIteration:
                if len(self.stack) == 1:
                    self.insn = Insn("hlt")  # a program that ends halts, as a careful kernel's last loop does
                    self.stack[0] = (halt(self.cpu), ["end", None])
                    result = None
                    continue
                self.stack.pop()
                if trail[1] is not None:  # IRET: the interrupted instruction is at RIP again
                    self.insn = trail[1]
                    return
                result = None

    def position(self) -> tuple[Any, ...]:
        """Where the guest is, as a value: equal positions behave alike."""
        parts: list[Any] = [self.insn.kind if self.insn else ""]
        for _, (name, pending, *rest) in self.stack:
            parts.append((name, pending.kind if pending is not None else "", *rest))
        return tuple(parts)

    def close(self) -> None:
        """Drop whatever ran."""
        for program, _ in self.stack:
            program.close()
        self.stack.clear()
        self.insn = None
