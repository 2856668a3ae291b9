"""The words of a recorded step: those that the World has for the same step, for logs and for errors."""

from __future__ import annotations

from typing import Any

from actors.ops import Code, Order
from actors.vm import Vm
from racevisor import step
from racevisor.memory import buffer_name

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


def words(vm: Vm, memory: str, record: tuple[Any, ...]) -> dict[str, Any]:
    """Channel and label for a log.  The label leaves out what the record does not hold: the arguments of an RMW."""
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
