"""The words of a recorded step: those that the World has for the same step, for logs and for errors."""

from __future__ import annotations

from typing import Any

from actors.ops import Code, Order
from actors.vm import Vm
from racevisor import step
from racevisor.memory import buffer_name
from racevisor.words import value_name

_FENCES = {Order.FULL: "smp_mb()", Order.WRITE: "smp_wmb()", Order.READ: "smp_rmb()"}


def channel_name(vm: Vm, memory: str, record: tuple[Any, ...]) -> str:
    """The channel of the World whose head this was."""
    _, kind, thread, _, where, _, result = record
    name = vm.actors[thread].name
    if kind == step.STORE_BUFFER:
        return buffer_name(name, vm.cells[where], memory)
    if kind == step.IPI:
        return f"{name}=>{vm.actors[where].name}"
    return f"{name}?{result}" if kind == step.CHOICE else name


def fields(vm: Vm, memory: str, record: tuple[Any, ...]) -> dict[str, Any]:
    """What a log says of a step: its words, and for whoever counts them the op, the cell, and the value by its kernel name.

    `post` is a store into the thread's own buffer; `store` is one that reaches memory, at once or from a buffer.  The value is
    what a load has seen, and what any other op left behind.
    """
    _, kind, _, code, where, after, result = record
    said = words(vm, memory, record)
    if kind == step.CHOICE:
        return {**said, "op": "choose", "value": str(result)}
    if code == Code.SEND:
        return {**said, "op": "send", "cell": vm.actors[where].name}
    if code == Code.FENCE:
        return {**said, "op": "fence"}
    cell = vm.actors[where].deliver_ipi.cell if kind == step.IPI else vm.cells[where]
    posted = code == Code.STORE and kind == step.THREAD and memory != "sc"
    op = "ipi" if kind == step.IPI else "post" if posted else Code(code).name.lower()
    return {**said, "op": op, "cell": cell.label, "value": value_name(cell, result if code == Code.LOAD else after)}


def words(vm: Vm, memory: str, record: tuple[Any, ...]) -> dict[str, Any]:
    """Channel and label.  The label leaves out what the record does not hold: the arguments of an RMW."""
    _, kind, _, code, where, after, result = record
    channel = channel_name(vm, memory, record)
    if kind == step.IPI:
        label = f"reschedule IPI arrives at {vm.actors[where].name}: {after}"
    elif kind == step.CHOICE:
        label = f"choose() = {result}"
    elif code == Code.FENCE:
        label = _FENCES[Order(after)]
    elif code == Code.SEND:
        label = f"smp_send_reschedule({vm.actors[where].name})"
    else:
        cell = vm.cells[where].label
        if code == Code.LOAD:
            label = f"READ_ONCE({cell}) = {result}"
        elif code == Code.STORE:
            label = f"{cell} <- {after}" if kind == step.STORE_BUFFER else f"WRITE_ONCE({cell}, {after})"
        else:
            label = f"{cell}: {result} -> {after}"
    return {"channel": channel, "label": label}
