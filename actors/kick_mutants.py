"""What kicks, wake-ups, requests and vCPUs must not be: the mutants of the vCPU loop, as functions that replace the right ones.

Each differs from the function that its docstring names in one thing.  Orders of accesses are made by entry_in_order() and
block_in_order() of actors.run_loop.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.ops import READ_ONCE, WRITE_ONCE, clear_bit, cmpxchg, send_ipi, set_bit, smp_mb, smp_wmb
from actors.pcpu import Pcpu
from actors.requests import (
    EXITING_GUEST_MODE,
    IN_GUEST_MODE,
    KVM_REQ_EVENT,
    OUTSIDE_GUEST_MODE,
    READING_SHADOW_PAGE_TABLES,
    kvm_check_request,
    kvm_vcpu_wake_up,
)
from actors.run_loop import VcpuLoop, kvm_vcpu_exiting_guest_mode, local_irq_enable

# ---- senders


async def request_by_store(req: int, vcpu: VcpuLoop) -> None:
    """kvm_make_request() with __set_bit(): a load and a plain store."""
    await WRITE_ONCE(vcpu.requests, await READ_ONCE(vcpu.requests) | 1 << req)


async def request_without_wmb(req: int, vcpu: VcpuLoop) -> None:
    """kvm_make_request() without smp_wmb().  [kvm_host.h, 3.8 to 4.5]"""
    await set_bit(req, vcpu.requests)


async def kick_without_mb(me: Actor, vcpu: VcpuLoop) -> None:
    """kvm_vcpu_kick() that reads mode plainly before it changes it."""
    if await READ_ONCE(vcpu.wait_task):
        await kvm_vcpu_wake_up(me, vcpu)
    elif await needs_ipi_without_mb(vcpu):
        await send_ipi(await READ_ONCE(vcpu.cpu))


async def needs_ipi_without_mb(vcpu: VcpuLoop) -> bool:
    """A plain load of mode, and the cmpxchg only if it is worth it."""
    if await READ_ONCE(vcpu.mode) == OUTSIDE_GUEST_MODE:
        return False
    return bool(await cmpxchg(vcpu.mode, IN_GUEST_MODE, EXITING_GUEST_MODE) != OUTSIDE_GUEST_MODE)


async def kick_exiting_too(me: Actor, vcpu: VcpuLoop) -> None:
    """kvm_vcpu_kick() that sends an IPI to a vCPU that was told to exit already."""
    if not await kvm_vcpu_wake_up(me, vcpu):
        if await kvm_vcpu_exiting_guest_mode(vcpu) != OUTSIDE_GUEST_MODE:
            await send_ipi(await READ_ONCE(vcpu.cpu))


async def kick_old_cpu(me: Actor, vcpu: VcpuLoop) -> None:
    """kvm_vcpu_kick() that reads vcpu->cpu before it looks at mode.  [kvm_main.c kvm_vcpu_kick, 3.8]"""
    if not await kvm_vcpu_wake_up(me, vcpu):
        cpu = await READ_ONCE(vcpu.cpu)
        if await kvm_vcpu_exiting_guest_mode(vcpu) == IN_GUEST_MODE:
            await send_ipi(cpu)


async def kick_by_store(me: Actor, vcpu: VcpuLoop) -> None:
    """kvm_vcpu_kick() with a load and a store instead of cmpxchg(): the vCPU may have left guest mode in between."""
    if await kvm_vcpu_wake_up(me, vcpu):
        return
    await smp_mb()
    if await READ_ONCE(vcpu.mode) == IN_GUEST_MODE:
        await WRITE_ONCE(vcpu.mode, EXITING_GUEST_MODE)
        await send_ipi(await READ_ONCE(vcpu.cpu))


async def publish_and_take_back(me: Actor, vcpu: VcpuLoop, work: int) -> None:
    """A sender that finds the vCPU in the host clears its request: it will look at the work anyway, will it not?"""
    await WRITE_ONCE(vcpu.work, work)
    await vcpu.vm.calls.kvm_make_request(KVM_REQ_EVENT, vcpu)
    if await kvm_vcpu_exiting_guest_mode(vcpu) == IN_GUEST_MODE:
        await send_ipi(await READ_ONCE(vcpu.cpu))
    else:
        await clear_bit(KVM_REQ_EVENT, vcpu.requests)


async def publish_without_request(me: Actor, vcpu: VcpuLoop, work: int) -> None:
    """Publish and kick: nothing stays behind if the kick finds the vCPU on its way in."""
    await WRITE_ONCE(vcpu.work, work)
    await vcpu.vm.calls.kvm_vcpu_kick(me, vcpu)


async def look_always(req: int, vcpu: VcpuLoop) -> bool:
    """Before every entry, request or not, as a vCPU does for what comes by request-less kicks."""
    return req == KVM_REQ_EVENT or await kvm_check_request(req, vcpu)


async def check_without_mb(req: int, vcpu: VcpuLoop) -> bool:
    """kvm_check_request() without smp_mb__after_atomic()."""
    if not await READ_ONCE(vcpu.requests) >> req & 1:
        return False
    await clear_bit(req, vcpu.requests)
    return True


async def check_work_early(req: int, vcpu: Any) -> bool:
    """The load of the work where the missing barrier lets it go: before the bit is cleared."""
    if not await READ_ONCE(vcpu.requests) >> req & 1:
        return False
    vcpu.seen = await READ_ONCE(vcpu.work)
    await clear_bit(req, vcpu.requests)
    return True


async def inject_what_was_loaded(vcpu: VcpuLoop) -> None:
    """The work was loaded already."""


async def wake_without_mb(me: Actor, vcpu: VcpuLoop) -> None:
    """Waker without a barrier.  [async_pf.c async_pf_execute: waitqueue_active(), before 4.4]"""
    await WRITE_ONCE(vcpu.async_pf_done, True)
    if await READ_ONCE(vcpu.wait_task):
        await kvm_vcpu_wake_up(me, vcpu)


async def wake_first(me: Actor, vcpu: VcpuLoop) -> None:
    """Looks who sleeps, then says that it is done.  [as the PIT timer before 3d80840d9612]"""
    await kvm_vcpu_wake_up(me, vcpu)
    await WRITE_ONCE(vcpu.async_pf_done, True)


async def always_halts(vcpu: VcpuLoop) -> bool:
    """HLT does not look for events: kvm_vcpu_block() will."""
    return True


async def exiting_is_outside(vcpu: VcpuLoop) -> bool:
    """Who is told to exit already needs no IPI."""
    return await kvm_vcpu_exiting_guest_mode(vcpu) not in (OUTSIDE_GUEST_MODE, EXITING_GUEST_MODE)


async def in_guest_only(vcpu: VcpuLoop) -> bool:
    """Without KVM_REQUEST_WAIT: only a guest needs an IPI."""
    return await kvm_vcpu_exiting_guest_mode(vcpu) == IN_GUEST_MODE


async def walk_begin_without_mb(vcpu: VcpuLoop) -> None:
    """walk_shadow_page_lockless_begin() without the barrier after mode."""
    await vcpu.here().local_irq_disable()
    await WRITE_ONCE(vcpu.mode, READING_SHADOW_PAGE_TABLES)


async def walk_begin_irqs_on(vcpu: VcpuLoop) -> None:
    """walk_shadow_page_lockless_begin() with IRQs on: the IPI is answered in the middle of the walk."""
    await WRITE_ONCE(vcpu.mode, READING_SHADOW_PAGE_TABLES)
    await smp_mb()


async def call_without_ipi(me: Any, cpus: list[Pcpu]) -> None:
    """smp_call_function_many() that trusts in an interrupt of somebody else's."""
    for pcpu in cpus:
        await pcpu.queue_call(me.csd)
    for pcpu in cpus:
        await pcpu.wait_for_call(me.csd)


# ---- the vCPU's side


async def exit_request_without_work(vcpu: VcpuLoop) -> bool:
    """kvm_vcpu_exit_request() that looks at requests alone: signals and need_resched were looked at before."""
    return await READ_ONCE(vcpu.mode) == EXITING_GUEST_MODE or bool(await READ_ONCE(vcpu.requests))


async def cancel_without_srcu(vcpu: VcpuLoop) -> None:
    """cancel_entry() that does not go back into the read section."""
    await WRITE_ONCE(vcpu.mode, OUTSIDE_GUEST_MODE)
    await smp_wmb()
    await local_irq_enable(vcpu)


async def sleep_in_read_section(vcpu: VcpuLoop) -> None:
    """vcpu_block() that stays in the read section.  [as arch/riscv/kvm/vcpu.c kvm_riscv_check_vcpu_requests, before 5.19]"""
    await vcpu.vm.calls.kvm_vcpu_block(vcpu)
