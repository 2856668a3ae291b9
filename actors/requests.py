"""Requests and kicks: how any thread makes a vCPU look.  [include/linux/kvm_host.h, virt/kvm/kvm_main.c]

Two store/load duels decide whether a kick can be lost, and both need a full barrier on both sides:
entry (the vCPU stores mode, then reads requests; the kicker sets a request, then reads mode) and
sleep (the sleeper stores "I sleep", then reads the condition; the waker stores the condition, then reads "who sleeps").
"""

from __future__ import annotations

from typing import Any, Protocol

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, clear_bit, cmpxchg, send_ipi, set_bit, smp_mb, smp_wmb, xchg
from actors.sync import TASK_RUNNING

OUTSIDE_GUEST_MODE, IN_GUEST_MODE, EXITING_GUEST_MODE, READING_SHADOW_PAGE_TABLES = 0, 1, 2, 3
KVM_REQ_TLB_FLUSH = 0
KVM_REQ_PENDING_TIMER, KVM_REQ_UNHALT, KVM_REQ_EVENT, KVM_REQ_NMI = 5, 6, 11, 14  # 3.8 numbering

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4
MP_STATE_NAMES = {0: "RUNNABLE", 1: "UNINITIALIZED", 2: "INIT_RECEIVED", 3: "HALTED", 4: "SIPI_RECEIVED"}


class Requested(Protocol):
    """What requests and kicks need of a vCPU: actors.vcpu.Vcpu has it, and the lean one of actors.run_loop."""

    id: int
    name: str
    pcpu: Any
    mode: Cell
    requests: Cell
    wait_task: Cell
    task_state: Cell


async def kvm_make_request(req: int, vcpu: Requested) -> None:
    """Post work for the vCPU; what was stored before is visible to whoever takes the request.  [kvm_host.h]"""
    await smp_wmb()
    await set_bit(req, vcpu.requests)


async def kvm_check_request(req: int, vcpu: Requested) -> bool:
    """On the vCPU: test, clear, full barrier.  [kvm_host.h; the barrier is smp_mb__after_atomic() since 4.12]"""
    if not await READ_ONCE(vcpu.requests) >> req & 1:
        return False
    await clear_bit(req, vcpu.requests)
    await smp_mb()
    return True


async def kvm_vcpu_kick(me: Actor, vcpu: Requested) -> None:
    """Wake the vCPU if it sleeps, else force it out of guest mode.  [kvm_main.c kvm_vcpu_kick, rcuwait_wake_up]"""
    if await kvm_vcpu_wake_up(me, vcpu):
        return
    if vcpu.name == me.name:
        return  # in the host already: nothing to leave
    if await cmpxchg(vcpu.mode, IN_GUEST_MODE, EXITING_GUEST_MODE) == IN_GUEST_MODE:
        me.note("kvm_vcpu_kick", vcpu=vcpu.id)
        await send_ipi(vcpu.pcpu.name)


async def kvm_vcpu_wake_up(me: Actor, vcpu: Requested) -> bool:
    """Full barrier, then look for the sleeper: pairs with set_current_state() in kvm_vcpu_block().  [rcuwait_wake_up]"""
    await smp_mb()
    if not await READ_ONCE(vcpu.wait_task):
        return False
    await xchg(vcpu.task_state, TASK_RUNNING)  # try_to_wake_up()
    me.note("kvm_vcpu_wakeup", vcpu=vcpu.id)
    return True
