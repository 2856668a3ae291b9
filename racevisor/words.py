"""A step in the words of a kernel engineer: C-like, with names for values, from the longest to the shortest form.

`mp_state == HALTED` is a load that saw HALTED, `mp_state = HALTED` a store; RMWs keep their kernel names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from actors.actor import Actor, Cell
from actors.guest import APIC_DM_FIXED, APIC_DM_INIT, APIC_DM_NMI, APIC_DM_STARTUP
from actors.lapic import KVM_APIC_INIT, KVM_APIC_SIPI, Lapic
from actors.ops import CALL_QUEUED, HOST_TIMER, IN_GUEST, IPI_PENDING, IRQS_OFF, Code, Op, Order, masked
from actors.pcpu import Pcpu
from actors.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_PENDING_TIMER,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_UNHALT,
    MP_STATE_NAMES,
    OUTSIDE_GUEST_MODE,
    READING_SHADOW_PAGE_TABLES,
)
from actors.run_loop import TIF_NEED_RESCHED, TIF_SIGPENDING, VcpuLoop
from actors.sync import TASK_INTERRUPTIBLE, TASK_RUNNING
from actors.vcpu import Vcpu
from racevisor.step import CHOICE, IPI, STORE_BUFFER, Step

_NAMES: dict[str, Mapping[int, str]] = {
    "mp_state": MP_STATE_NAMES,
    "mode": {
        OUTSIDE_GUEST_MODE: "OUTSIDE",
        IN_GUEST_MODE: "IN_GUEST",
        EXITING_GUEST_MODE: "EXITING",
        READING_SHADOW_PAGE_TABLES: "READING",
    },
    "task_state": {TASK_RUNNING: "RUNNING", TASK_INTERRUPTIBLE: "INTERRUPTIBLE"},
}
_BITS: dict[str, Mapping[int, str]] = {
    "requests": {
        KVM_REQ_TLB_FLUSH: "TLB_FLUSH",
        KVM_REQ_PENDING_TIMER: "PENDING_TIMER",
        KVM_REQ_UNHALT: "UNHALT",
        KVM_REQ_EVENT: "EVENT",
        KVM_REQ_NMI: "NMI",
    },
    "thread_flags": {TIF_SIGPENDING: "SIGPENDING", TIF_NEED_RESCHED: "NEED_RESCHED"},
    "pending_events": {KVM_APIC_INIT: "INIT", KVM_APIC_SIPI: "SIPI"},
    "cpu": {
        bit.bit_length() - 1: name
        for bit, name in (
            (IRQS_OFF, "IRQS_OFF"),
            (IN_GUEST, "IN_GUEST"),
            (IPI_PENDING, "IPI_PENDING"),
            (HOST_TIMER, "HOST_TIMER"),
        )
    },
}
_MACHINE = (Vcpu, VcpuLoop, Lapic, Pcpu)
_MODES = {APIC_DM_FIXED: "FIXED", APIC_DM_NMI: "NMI", APIC_DM_INIT: "INIT", APIC_DM_STARTUP: "SIPI"}


def cell_name(cell: Cell, mine: Actor | None = None) -> str:
    """`mp_state` for a cell of one's own (or of one's own APIC or physical CPU), else `vcpu1.mp_state`."""
    owner = cell.owner
    if mine is not None and (owner is mine or owner in (getattr(mine, "apic", None), getattr(mine, "pcpu", None))):
        return cell.name
    return cell.label


def value_name(cell: Cell, value: Any) -> str:
    """A value of the machine's own cells by its kernel name; of other cells as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    named: Callable[[Cell, Any], str] | None = getattr(cell.owner, "value_name", None)
    if named is not None:  # an actor that knows words for its own values
        return named(cell, value)
    if (own := cell.owner.value_names.get(cell.name)) is not None:
        return own.get(value, str(value))
    if cell.name in cell.owner.bit_names and isinstance(value, int):
        return "|".join(bit_name(cell, nr) for nr in range(value.bit_length()) if value >> nr & 1) or "0"
    if not isinstance(cell.owner, _MACHINE):
        return str(value) if value != "" else "free"
    name = cell.name
    if isinstance(value, int):
        if name in _NAMES:
            return _NAMES[name].get(value, str(value))
        if name in _BITS:
            return "|".join(bit_name(cell, nr) for nr in range(value.bit_length()) if value >> nr & 1) or "0"
        if name == "icr":
            mode, vector = _MODES.get(value >> 8, "?"), value & 0xFF
            return f"{mode} {vector:#x}" if mode in ("FIXED", "SIPI") else mode
        return hex(value) if value > 9 else str(value)
    if name == "regs" and isinstance(value, tuple) and len(value) == 2:
        return f"CS base {value[1]:#x}"
    if name == "mutex":
        return str(value) or "free"
    return str(value)


def bit_name(cell: Cell, nr: int) -> str:
    """A bit of the machine's own flag words by its kernel name."""
    if (own := cell.owner.bit_names.get(cell.name)) is not None:
        return own.get(nr, str(nr))
    if isinstance(cell.owner, _MACHINE):
        if cell.name.startswith(("irr", "tmr")) and cell.name[3:].isdigit():
            return f"{int(cell.name[3:]) * 32 + nr:#x}"
        return _BITS.get(cell.name, {}).get(nr, str(nr))
    return str(nr)


def words(step: Step, mine: Actor | None = None) -> list[str]:
    """What happened, longest form first; `mine` is the actor in whose column it is told."""
    cell, op = step.cell, step.op
    if step.kind == CHOICE:
        return [f"choose({op.a}) == {step.result}"]
    if step.kind == IPI:
        assert cell is not None
        return _ipi(cell.owner.name, step.before)
    if cell is None:
        if op.code == Code.SEND:
            return [f"smp_send_reschedule({op.a})", f"IPI to {op.a}"]
        return [{Order.FULL: "smp_mb()", Order.WRITE: "smp_wmb()"}.get(op.order, "smp_rmb()")]
    if isinstance(cell.owner, Pcpu):
        return _own_cpu(step, op)
    name = cell_name(cell, mine)
    if step.kind == STORE_BUFFER:
        return [f"{name} = {value_name(cell, step.after)}"]
    if op.code == Code.LOAD:
        return [f"{name} == {value_name(cell, step.result)}"]
    if op.code == Code.STORE:
        value = value_name(cell, op.a)
        if op.order == Order.RELEASE:
            return [f"smp_store_release({name}, {value})", f"{name} = {value} (release)", f"{name} = {value}"]
        return [f"{name} = {value}"]
    if op.code == Code.AWAIT:
        return _await(step, op, cell, name)
    return _rmw(step, op, cell, name)


def _rmw(step: Step, op: Op, cell: Cell, name: str) -> list[str]:
    old, new = value_name(cell, step.before), value_name(cell, step.after)
    change = [f"{name}: {old} => {new}"] if step.before != step.after else [f"{name} stays {old}"]
    if op.fn in ("or", "andnot") and isinstance(op.a, int) and op.a.bit_count() == 1:
        nr = op.a.bit_length() - 1
        verb = "set_bit" if op.fn == "or" else "clear_bit"
        bit = bit_name(cell, nr)
        if op.order != Order.FULL:
            return [f"{verb}({bit}, {name})", f"{name} |= {bit}" if op.fn == "or" else f"{name} &= ~{bit}"]
        was = step.before >> nr & 1
        long = f"test_and_{verb}({bit}, {name}) == {was}"
        return [long, f"test_and_{verb}({bit}) == {was}", f"{verb[:-4]} {bit}, was {was}"]
    if op.fn == "xchg":
        return [f"xchg({name}, {value_name(cell, op.a)}) == {old}", f"xchg {name}: {old} => {new}", *change]
    if op.fn == "cmpxchg":
        done = "" if step.before == op.a else ", fails"
        long = f"cmpxchg({name}, {value_name(cell, op.a)}, {value_name(cell, op.b)}) == {old}{done}"
        return [long, f"cmpxchg({name}) == {old}{done}", *change]
    if op.fn == "add":
        return [f"atomic_fetch_add({op.a}, {name}) == {old}", *change]
    return [f"{op.fn}({name}, {op.a}) == {old}", *change]


def _await(step: Step, op: Op, cell: Cell, name: str) -> list[str]:
    if op.fn == "await_masked":
        seen = value_name(cell, step.result)
        return [f"waited: {name} {masked(op)}, was {seen}", f"waited: {name} {masked(op)}", f"waited: {name}, was {seen}"]
    if op.b is not None:
        return [f"lock({name})"] if op.a == "" else [f"waited: {name} == {value_name(cell, op.a)}, = {value_name(cell, op.b)}"]
    if name.endswith("task_state"):
        return ["schedule() returns: woken", "woken"]
    return [f"waited: {name} == {value_name(cell, step.result)}"]


def _own_cpu(step: Step, op: Op) -> list[str]:
    """Accesses to the state of a physical CPU are named for what they do there."""
    before: int = step.before
    assert step.cell is not None
    cpu = step.cell.owner.name
    if op.fn == "await_masked":
        return [f"waited: {cpu} has answered", f"{cpu} has answered"]
    if op.fn == "vm_enter":
        return ["VM entry: IPI pending, leaves at once", "VM entry, left"] if before & IPI_PENDING else ["VM entry"]
    if op.fn == "or":
        if op.a & HOST_TIMER:
            return [f"host timer fires at {cpu}: VM exit" if before & IN_GUEST else f"host timer fires at {cpu}", "timer fires"]
        if op.a >= CALL_QUEUED:
            return [f"queue a call to {cpu}"]
        return ["VM entry"] if op.a == IN_GUEST else ["local_irq_disable()"]
    if op.fn == "irq_enable":
        return ["local_irq_enable(): call answered" if before & IPI_PENDING else "local_irq_enable()", "local_irq_enable()"]
    if op.fn == "andnot":
        if op.a & HOST_TIMER:
            return ["timer interrupt" if before & HOST_TIMER else "no timer interrupt"]
        if op.a == IPI_PENDING:
            return ["guest takes the notification"]
        if op.a >= CALL_QUEUED:
            return ["runs the queued calls", "runs the calls"]
        if op.a & IRQS_OFF:
            return ["local_irq_enable(): IPI taken here" if before & IPI_PENDING else "local_irq_enable()", "local_irq_enable()"]
        return ["VM exit"]
    if op.code == Code.AWAIT or before & IPI_PENDING:
        return ["guest is interrupted"]
    return ["guest: no interrupt"]


def _ipi(pcpu: str, before: int) -> list[str]:
    if before & IN_GUEST:
        return [f"IPI arrives at {pcpu}: forces a VM exit", f"IPI at {pcpu}: VM exit"]
    if before & IRQS_OFF:
        return [f"IPI arrives at {pcpu}: pending, IRQs are off", f"IPI at {pcpu}: pending"]
    return [f"IPI arrives at {pcpu}: handled by the host, kick gone", f"IPI at {pcpu}: kick gone"]


def tracepoint(name: str, fields: Mapping[str, Any]) -> str:
    """A note of the machine in a few words: `kvm_exit(hlt)`."""
    if name == "kvm_apic_accept_irq":
        return f"accept_irq({_MODES.get(fields['mode'], fields['mode'])})"
    for key in ("reason", "vector"):
        if key in fields:
            return f"{name}({fields[key]})"
    return name
