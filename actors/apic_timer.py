"""The APIC timer in virtual time: one-shot, periodic, TSC deadline; the host timer behind it.  [lapic.c, 6.16, start_sw_timer]

The host timer's callback runs on whatever CPU its interrupt came to, so what it shares with the vCPU are cells.  It injects
nothing itself: it counts what is pending and kicks, and the vCPU's thread delivers the interrupt of LVTT in its run loop.

Left out: the hardware timer of VMX, posted timer interrupts, and firing early to make up for the VM entry (timer_advance_ns).
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.apic_irq import kvm_apic_local_deliver
from actors.apic_regs import (
    APIC_LVT_MASKED,
    APIC_LVT_TIMER_MODES,
    APIC_LVT_TIMER_ONESHOT,
    APIC_LVT_TIMER_PERIODIC,
    APIC_LVT_TIMER_TSCDEADLINE,
    APIC_LVTT,
    APIC_TDCR,
    APIC_TMICT,
    ApicVcpu,
    LocalApic,
    apic_enabled,
    kvm_apic_hw_enabled,
    kvm_lapic_get_reg,
    kvm_lapic_set_reg,
)
from actors.ops import READ_ONCE, WRITE_ONCE, atomic_fetch_add
from actors.requests import KVM_REQ_PENDING_TIMER, kvm_make_request, kvm_vcpu_kick

APIC_BUS_CYCLE_NS = 1  # KVM's APIC bus runs at 1 GHz
#: a periodic timer of the guest must not keep the host busy, in ns  [x86.c min_timer_period_us]
MIN_TIMER_PERIOD_NS = 200_000


class Clock(Actor):
    """Virtual time: `now` in ns; the guests' TSC runs at `tsc_khz` and began at 0 with it."""

    def __init__(self, vm: Any, name: str = "clock", tsc_khz: int = 2_000_000) -> None:
        super().__init__(vm, name)
        self.tsc_khz = tsc_khz
        self.now = self.cell("now", 0)

    def cycles(self, ns: int) -> int:
        """ns in cycles of the TSC.  [x86.c nsec_to_cycles]"""
        return ns * self.tsc_khz // 1_000_000


class ApicTimer(Actor):
    """struct kvm_timer of one APIC.  `expires`: when the host timer fires, in ns; None if it is not enqueued."""

    def __init__(self, apic: LocalApic, clock: Clock) -> None:
        super().__init__(apic.vm, f"{apic.name}.timer")
        apic.timer = self
        self.apic, self.clock = apic, clock
        self.expires = self.cell("expires", None)
        self.pending = self.cell("pending", 0)
        self.timer_mode = self.cell("timer_mode", APIC_LVT_TIMER_ONESHOT)
        self.period = self.cell("period", 0)  # ns
        self.target_expiration = self.cell("target_expiration", 0)  # ns
        self.tscdeadline = self.cell("tscdeadline", 0)  # cycles


# ---- the host timer ---------------------------------------------------------------------------------------------------------


async def clock_advance(me: Actor, clock: Clock, timers: list[ApicTimer], ns: int) -> None:
    """Time goes on by `ns`; timers fire in the order of their expiry, each at its own time."""
    end = await READ_ONCE(clock.now) + ns
    while True:
        due = [(expires, i) for i, timer in enumerate(timers) if (expires := await READ_ONCE(timer.expires)) is not None]
        when, i = min(due, default=(end + 1, 0))
        if when > end:
            break
        await WRITE_ONCE(clock.now, max(when, await READ_ONCE(clock.now)))
        await apic_timer_fn(me, timers[i])
    await WRITE_ONCE(clock.now, end)


async def apic_timer_fn(me: Actor, timer: ApicTimer) -> None:
    """The callback: the interrupt is pending; a periodic timer goes on a period after its own expiry.  [lapic.c]"""
    expired = await READ_ONCE(timer.expires)
    await WRITE_ONCE(timer.expires, None)
    await apic_timer_expired(me, timer, from_timer_fn=True)
    if await READ_ONCE(timer.timer_mode) == APIC_LVT_TIMER_PERIODIC:
        await advance_periodic_target_expiration(timer)
        await WRITE_ONCE(timer.expires, expired + await READ_ONCE(timer.period))


async def apic_timer_expired(me: Actor, timer: ApicTimer, from_timer_fn: bool) -> None:
    """One more interrupt to deliver, unless there is one: ticks that the vCPU did not take collapse.  [lapic.c]"""
    if await READ_ONCE(timer.pending):
        return
    await atomic_fetch_add(1, timer.pending)
    await kvm_make_request(KVM_REQ_PENDING_TIMER, timer.apic.vcpu)  # KVM_REQ_UNBLOCK today
    if from_timer_fn:
        await kvm_vcpu_kick(me, timer.apic.vcpu)


# ---- the vCPU's side --------------------------------------------------------------------------------------------------------


async def apic_has_pending_timer(apic: LocalApic) -> bool:
    """Has it expired, and may it interrupt?  A reason not to sleep.  [lapic.c]"""
    if apic.timer is None or not await apic_enabled(apic):
        return False
    return not await kvm_lapic_get_reg(apic, APIC_LVTT) & APIC_LVT_MASKED and bool(await READ_ONCE(apic.timer.pending))


async def kvm_inject_apic_timer_irqs(vcpu: ApicVcpu) -> None:
    """In the run loop: what is pending goes through LVTT; a timer that does not repeat has no deadline any more.  [lapic.c]"""
    timer: ApicTimer = vcpu.apic.timer
    if not await READ_ONCE(timer.pending):
        return
    await kvm_apic_local_deliver(vcpu, vcpu.apic, APIC_LVTT)
    mode = await READ_ONCE(timer.timer_mode)
    if mode != APIC_LVT_TIMER_PERIODIC:
        await WRITE_ONCE(timer.tscdeadline, 0)
        if mode == APIC_LVT_TIMER_ONESHOT:
            await WRITE_ONCE(timer.target_expiration, 0)
    await WRITE_ONCE(timer.pending, 0)


async def cancel_apic_timer(timer: ApicTimer) -> None:
    """Stop it, and owe nothing.  [lapic.c]"""
    await WRITE_ONCE(timer.expires, None)
    await WRITE_ONCE(timer.pending, 0)


async def apic_update_lvtt(apic: LocalApic) -> None:
    """LVTT was written: to or from TSC deadline the timer is disarmed, between the others it runs on.  [lapic.c]"""
    timer: ApicTimer | None = apic.timer
    if timer is None:
        return
    mode = await kvm_lapic_get_reg(apic, APIC_LVTT) & APIC_LVT_TIMER_MODES
    old = await READ_ONCE(timer.timer_mode)
    if mode == old:
        return
    if APIC_LVT_TIMER_TSCDEADLINE in (mode, old):
        await cancel_apic_timer(timer)
        await kvm_lapic_set_reg(apic, APIC_TMICT, 0)
        await WRITE_ONCE(timer.period, 0)
        await WRITE_ONCE(timer.tscdeadline, 0)
    await WRITE_ONCE(timer.timer_mode, mode)
    await limit_periodic_timer_frequency(timer)


async def limit_periodic_timer_frequency(timer: ApicTimer) -> None:
    """At least MIN_TIMER_PERIOD_NS.  [lapic.c]"""
    if await READ_ONCE(timer.timer_mode) == APIC_LVT_TIMER_PERIODIC and 0 < await READ_ONCE(timer.period) < MIN_TIMER_PERIOD_NS:
        await WRITE_ONCE(timer.period, MIN_TIMER_PERIOD_NS)


async def divide_count(apic: LocalApic) -> int:
    """TDCR bits 3, 1 and 0: divide by 2, 4, .. 128, and 7 is by 1.  [lapic.c update_divide_count]"""
    tdcr = await kvm_lapic_get_reg(apic, APIC_TDCR)
    return 1 << ((tdcr & 3 | (tdcr & 8) >> 1) + 1 & 7)


async def write_timer(apic: LocalApic, offset: int, value: int) -> None:
    """case APIC_TMICT, APIC_TDCR of kvm_lapic_reg_write(); without a timer they are only stored."""
    timer: ApicTimer | None = apic.timer
    if offset == APIC_TDCR:
        old = await divide_count(apic)
        await kvm_lapic_set_reg(apic, APIC_TDCR, value & 0xB)
        new = await divide_count(apic)
        if timer is not None and new != old:
            await update_target_expiration(timer, old, new)
    elif timer is None:
        await kvm_lapic_set_reg(apic, APIC_TMICT, value)
    elif await READ_ONCE(timer.timer_mode) != APIC_LVT_TIMER_TSCDEADLINE:
        await cancel_apic_timer(timer)
        await kvm_lapic_set_reg(apic, APIC_TMICT, value)
        await start_apic_timer(timer)


async def update_target_expiration(timer: ApicTimer, old: int, new: int) -> None:
    """What is left takes as many ticks as before, of the new length.  [lapic.c, case APIC_TDCR and update_target_expiration]"""
    if not await READ_ONCE(timer.period):
        return
    await WRITE_ONCE(timer.expires, None)
    await WRITE_ONCE(timer.period, await tmict_to_ns(timer))
    await limit_periodic_timer_frequency(timer)
    now = await READ_ONCE(timer.clock.now)
    before = max(await READ_ONCE(timer.target_expiration) - now, 0)
    after = before * new // old
    cycles = timer.clock.cycles
    await WRITE_ONCE(timer.tscdeadline, await READ_ONCE(timer.tscdeadline) + cycles(after) - cycles(before))
    await WRITE_ONCE(timer.target_expiration, now + after)
    await restart_apic_timer(timer)


async def tmict_to_ns(timer: ApicTimer) -> int:
    """The initial count in ns.  [lapic.c]"""
    return await kvm_lapic_get_reg(timer.apic, APIC_TMICT) * APIC_BUS_CYCLE_NS * await divide_count(timer.apic)


async def start_apic_timer(timer: ApicTimer) -> None:
    """Arm it by the initial count or the deadline; a count of 0 leaves it stopped.  [lapic.c __start_apic_timer]"""
    await WRITE_ONCE(timer.pending, 0)
    if await READ_ONCE(timer.timer_mode) != APIC_LVT_TIMER_TSCDEADLINE and not await set_target_expiration(timer):
        return
    await restart_apic_timer(timer)


async def set_target_expiration(timer: ApicTimer) -> bool:
    """A period from now; False if the count is 0.  [lapic.c]"""
    await WRITE_ONCE(timer.period, await tmict_to_ns(timer))
    if not await READ_ONCE(timer.period):
        await WRITE_ONCE(timer.tscdeadline, 0)
        return False
    await limit_periodic_timer_frequency(timer)
    now, period = await READ_ONCE(timer.clock.now), await READ_ONCE(timer.period)
    await WRITE_ONCE(timer.tscdeadline, timer.clock.cycles(now + period))
    await WRITE_ONCE(timer.target_expiration, now + period)
    return True


async def restart_apic_timer(timer: ApicTimer) -> None:
    """Enqueue the host timer, unless an interrupt is pending that would not repeat.  [lapic.c start_sw_timer]"""
    mode = await READ_ONCE(timer.timer_mode)
    if mode != APIC_LVT_TIMER_PERIODIC and await READ_ONCE(timer.pending):
        return
    await (start_sw_tscdeadline(timer) if mode == APIC_LVT_TIMER_TSCDEADLINE else start_sw_period(timer, mode))


async def start_sw_period(timer: ApicTimer, mode: int) -> None:
    """One-shot and periodic; a target in the past has expired.  [lapic.c]"""
    if not await READ_ONCE(timer.period):
        return
    if await READ_ONCE(timer.clock.now) > await READ_ONCE(timer.target_expiration):
        await apic_timer_expired(timer.apic.vcpu, timer, from_timer_fn=False)
        if mode == APIC_LVT_TIMER_ONESHOT:
            return
        await advance_periodic_target_expiration(timer)
    await WRITE_ONCE(timer.expires, await READ_ONCE(timer.target_expiration))


async def start_sw_tscdeadline(timer: ApicTimer) -> None:
    """A deadline in the past has expired; 0 disarms.  [lapic.c]"""
    deadline = await READ_ONCE(timer.tscdeadline)
    if not deadline:
        return
    now = await READ_ONCE(timer.clock.now)
    left = deadline - timer.clock.cycles(now)
    if left > 0:
        await WRITE_ONCE(timer.expires, now + -(-left * 1_000_000 // timer.clock.tsc_khz))
    else:
        await apic_timer_expired(timer.apic.vcpu, timer, from_timer_fn=False)


async def advance_periodic_target_expiration(timer: ApicTimer) -> None:
    """A period after the last target, whenever it is now: no drift.  [lapic.c]"""
    target = await READ_ONCE(timer.target_expiration) + await READ_ONCE(timer.period)
    await WRITE_ONCE(timer.target_expiration, target)
    await WRITE_ONCE(timer.tscdeadline, timer.clock.cycles(target))


# ---- what the guest reads and writes besides --------------------------------------------------------------------------------


async def apic_get_tmcct(apic: LocalApic) -> int:
    """The current count: 0 when it has run out once, when it is stopped, and in TSC deadline mode.  [lapic.c]"""
    timer: ApicTimer | None = apic.timer
    if timer is None or await READ_ONCE(timer.timer_mode) == APIC_LVT_TIMER_TSCDEADLINE:
        return 0
    period = await READ_ONCE(timer.period)
    if not await kvm_lapic_get_reg(apic, APIC_TMICT) or not period:
        return 0
    left = max(await READ_ONCE(timer.target_expiration) - await READ_ONCE(timer.clock.now), 0)
    return int(left % period // (APIC_BUS_CYCLE_NS * await divide_count(apic)))


async def kvm_set_lapic_tscdeadline_msr(vcpu: ApicVcpu, deadline: int) -> None:
    """WRMSR IA32_TSC_DEADLINE, in cycles; ignored in the other modes.  [lapic.c]"""
    timer: ApicTimer = vcpu.apic.timer
    if not await kvm_apic_hw_enabled(vcpu.apic) or await READ_ONCE(timer.timer_mode) != APIC_LVT_TIMER_TSCDEADLINE:
        return
    await WRITE_ONCE(timer.expires, None)
    await WRITE_ONCE(timer.tscdeadline, deadline)
    await start_apic_timer(timer)


async def kvm_get_lapic_tscdeadline_msr(vcpu: ApicVcpu) -> int:
    """RDMSR IA32_TSC_DEADLINE: 0 once it has expired, and in the other modes.  [lapic.c]"""
    timer: ApicTimer = vcpu.apic.timer
    if not await kvm_apic_hw_enabled(vcpu.apic) or await READ_ONCE(timer.timer_mode) != APIC_LVT_TIMER_TSCDEADLINE:
        return 0
    deadline: int = await READ_ONCE(timer.tscdeadline)
    return deadline
