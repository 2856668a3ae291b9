"""Programs with a hub, for the tests of decomposition: lines of words, one thread a line, the hub first.

`load:a`, `store:a:1`, `release:a:1`, `xchg:a:1`, `bit:a:0`, `await:a:1`, `mb`, `wmb`, `ipi:0` are ops on the cells a to h and on
physical CPUs; `cli:0` is cli on CPU 0, `irq:0` looks at its pending bits.  `if:a:OP` does OP if the cell holds something,
`keep:a` remembers what it holds, `kept:OP` does OP if that was something, `maybe:OP` chooses, `spin:a` loads for ever until it
holds something.  `cp` is a checkpoint.  Registers: `seen` what a thread has loaded, `pc` where it is, `kept`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors import ops
from actors.actor import Cell
from actors.pcpu import Pcpu
from actors.thread import Thread
from actors.vm import Vm
from racevisor.hub import Refused
from racevisor.monitor import Monitor, Violation
from racevisor.world import World

CELLS = "abcdefgh"


class _Cpu:
    """All that a World asks of a vCPU."""

    def __init__(self, pcpu: Pcpu) -> None:
        self.pcpu = pcpu


def hub_world(
    program: list[str],
    memory: str = "sc",
    *,
    monitors: Callable[[Vm], list[Monitor]] = lambda vm: [],
    check: Callable[[Vm], list[Violation]] | None = None,
) -> World:
    """A World in which the hub H and the targets T0, T1, ... run the lines of `program`."""
    vm = Vm()
    vm.guest_memory(**dict.fromkeys(CELLS, 0))
    for n in range(2):
        vm.vcpus.append(_Cpu(Pcpu(vm, f"pcpu{n}")))  # type: ignore[arg-type]
    for name, line in zip(["H", *(f"T{i}" for i in range(len(program) - 1))], program, strict=True):
        thread = Thread(vm, name, _body(line.split()), seen=(), pc=0, kept=None)
        if name == "H":
            del thread.state["seen"]  # what it loads it forgets, unless it is told to keep it
    return World(vm, memory, monitors=monitors(vm), check=check, outcome=outcome, automata=True)


def _body(words: list[str]) -> Callable[[Any], Any]:
    async def run(me: Any) -> None:
        for n, word in enumerate(words):
            me.pc = n
            if word == "cp":
                me.checkpoint(f"before {n}")
            else:
                await _one(me, word)
        me.pc = len(words)

    return run


async def _one(me: Any, word: str) -> None:
    name, _, rest = word.partition(":")
    if name in ("kept", "maybe"):
        if me.kept if name == "kept" else await ops.choose(2):
            await _one(me, rest)
        return
    if name in ("mb", "wmb"):
        await (ops.smp_mb() if name == "mb" else ops.smp_wmb())
        return
    where, _, value = rest.partition(":")
    if name in ("ipi", "cli", "irq"):
        pcpu = me.vm.vcpus[int(where)].pcpu
        result = await {"ipi": lambda: ops.send_ipi(pcpu.name), "cli": pcpu.local_irq_disable, "irq": pcpu.interrupt_window}[
            name
        ]()
    else:
        cell: Cell = getattr(me.vm.memory, where)
        if name == "if":
            if await ops.READ_ONCE(cell):
                await _one(me, value)
            return
        if name == "keep":
            me.kept = await ops.READ_ONCE(cell)
            return
        if name == "spin":
            while True:
                me.checkpoint(f"spins at {me.pc}")
                if await ops.READ_ONCE(cell):
                    return
        number = int(value or 0)
        op = {
            "load": lambda: ops.READ_ONCE(cell),
            "store": lambda: ops.WRITE_ONCE(cell, number),
            "release": lambda: ops.smp_store_release(cell, number),
            "xchg": lambda: ops.xchg(cell, number),
            "bit": lambda: ops.set_bit(number, cell),
            "await": lambda: ops.await_eq(cell, number),
        }[name]
        result = await op()
    if result is not None and me.name != "H":
        me.seen = (*me.seen, result)


def outcome(vm: Vm) -> dict[str, Any]:
    """Registers of the threads in question, and all cells that may be looked at."""
    found: dict[str, Any] = {}
    for actor in vm.actors:
        if isinstance(actor, Thread) and vm.in_question(actor):
            for name in actor.state:
                found[f"{actor.name}.{name}"] = getattr(actor, name)
    for cell in vm.cells:
        try:
            found[cell.label] = cell.value
        except Refused:
            continue
    return found
