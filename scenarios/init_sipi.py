"""A vCPU's INIT overwritten by its own HLT (KVM patch 66450a21f996, March 2013).

To start a processor, the boot CPU sends it INIT, then SIPI with a start address.  Before the patch, KVM's sender wrote the
target's mp_state with plain stores; the target wrote the same variable when it halted (HALTED) and when it woke (RUNNABLE).
If the target's store lands second, the INIT is gone (I-1: HLT, I-2: un-halt), the SIPI that follows is dropped, and the guest
waits for ever for a CPU that sleeps.  The patch latches both events in apic->pending_events and lets only the target's own
thread write mp_state.  As it was first committed ("seed") it takes INIT and SIPI in two steps: an INIT and SIPI that arrive
between them lose the SIPI (I-8, I-9).  "latch" takes both in one xchg (299018f44ac5; 3.10.0 and 3.11 ship it, no release
ships the seed).  "today" (1e17a6f8721c, since 6.0) takes two steps again behind an early return: a stale SIPI brings I-8 back.

Modelled: xAPIC ICR writes, the run loop with requests, mode, kicks and IPIs, HLT and wake-up, KVM_GET/SET_MP_STATE.
Left out: SMM, nested guests, APICv, TPR.  The run loop around the patched functions is the one of later kernels (barriers in
request and kick); 3.8 to 3.11 have none there and rely on x86's locked instructions.
"""

from actors.devices import Device
from actors.guest import APIC_DM_INIT, APIC_DM_STARTUP, busy, idle
from actors.lapic import (
    KVM_APIC_INIT,
    KVM_APIC_SIPI,
    accept_init,
    accept_sipi,
    apic_accept_irq,
    apic_dm_init,
    apic_dm_startup,
    kvm_lapic_reset,
)
from actors.ops import IN_GUEST, READ_ONCE, WRITE_ONCE, Code, set_bit, smp_rmb, smp_wmb, test_and_clear_bit, test_and_set_bit, xchg
from actors.requests import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_REQ_EVENT,
    MP_STATE_NAMES,
    kvm_make_request,
    kvm_vcpu_kick,
)
from actors.sync import TASK_INTERRUPTIBLE
from actors.userspace import Userspace, kvm_arch_vcpu_ioctl_get_mpstate, kvm_arch_vcpu_ioctl_set_mpstate
from actors.vcpu import RESET_CS_BASE, kvm_apic_has_interrupt, kvm_arch_interrupt_allowed
from racevisor import Always, Monitor, Scenario, Setup, Sometimes, Variant, Violation

# ---- before (3.8)                                          | seed (66450a21f996) is the machine's own apic_dm_init/_startup


async def dm_init_before(me, apic):
    await WRITE_ONCE(apic.vcpu.mp_state, KVM_MP_STATE_INIT_RECEIVED)  # races with the target's own stores
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def dm_startup_before(me, apic, vector):
    if await READ_ONCE(apic.vcpu.mp_state) != KVM_MP_STATE_INIT_RECEIVED:
        return 0  # dropped
    await WRITE_ONCE(apic.sipi_vector, vector)
    await WRITE_ONCE(apic.vcpu.mp_state, KVM_MP_STATE_SIPI_RECEIVED)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def run_prologue_before(vcpu):
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_SIPI_RECEIVED:
        await kvm_lapic_reset(vcpu.apic)
        await vcpu.vm.calls.kvm_vcpu_reset(vcpu)
        vector = await READ_ONCE(vcpu.apic.sipi_vector)
        await vcpu.vm.calls.kvm_vcpu_deliver_sipi_vector(vcpu, vector)
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)


async def unblocked_before(vcpu):
    state = await READ_ONCE(vcpu.mp_state)
    if state == KVM_MP_STATE_HALTED:
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)  # an INIT since the load above is overwritten
    elif state != KVM_MP_STATE_RUNNABLE:
        return -4  # -EINTR: userspace calls KVM_RUN again, which starts at run_prologue
    return 1


async def runnable_before(vcpu):
    if await READ_ONCE(vcpu.mp_state) in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED):
        return True
    if await READ_ONCE(vcpu.nmi_queued):
        return True
    return await kvm_arch_interrupt_allowed(vcpu) and await kvm_apic_has_interrupt(vcpu.apic) >= 0


async def enter_guest_event_before(vcpu):
    return True  # mp_state is not looked at again: guest code may run in INIT_RECEIVED


async def no_accept(me, vcpu):
    """Before the patch, and in I-M20: KVM_GET_MP_STATE only reads."""


async def set_mpstate_before(vcpu, state):
    await WRITE_ONCE(vcpu.mp_state, state)


BEFORE = {
    "apic_dm_init": dm_init_before,
    "apic_dm_startup": dm_startup_before,
    "vcpu_run_prologue": run_prologue_before,
    "vcpu_unblocked": unblocked_before,
    "kvm_arch_vcpu_runnable": runnable_before,
    "vcpu_enter_guest_event": enter_guest_event_before,
    "kvm_apic_accept_events": no_accept,
    "set_mpstate": set_mpstate_before,
}

UNPROMISED_BEFORE = {
    "I-I1": "senders write mp_state: that is what the patch ends",
    "I-I6": "vcpu_enter_guest() does not look at mp_state again after it serviced requests",
}

# ---- kvm_apic_accept_events(): seed | latch is the machine's own (one xchg) | today


async def accept_events_seed(me, vcpu):
    apic = vcpu.apic
    if await test_and_clear_bit(KVM_APIC_INIT, apic.pending_events):
        await accept_init(me, vcpu)
    if await test_and_clear_bit(KVM_APIC_SIPI, apic.pending_events):  # consumed even if we do not wait for it
        if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
            await smp_rmb()
            await accept_sipi(me, vcpu)


async def accept_events_today(me, vcpu):
    if not await READ_ONCE(vcpu.apic.pending_events):  # the only difference to the seed
        return
    await accept_events_seed(me, vcpu)


async def dm_init_today(me, apic):
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)  # the smp_wmb() is in here now
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def emulate_halt_today(vcpu):
    pending = await READ_ONCE(vcpu.apic.pending_events)
    await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE if pending else KVM_MP_STATE_HALTED)
    return 1


TODAY = {"kvm_apic_accept_events": accept_events_today, "apic_dm_init": dm_init_today, "kvm_emulate_halt": emulate_halt_today}

# ---- mutants of the latched version (kvm_apic_accept_events and its senders)


async def m6_init_ors(me, apic):
    await set_bit(KVM_APIC_INIT, apic.pending_events)  # an older SIPI survives
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m7_sipi_first(me, vcpu):
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    pe = await xchg(vcpu.apic.pending_events, 0)
    if pe & 1 << KVM_APIC_SIPI and await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        await accept_sipi(me, vcpu)
    if pe & 1 << KVM_APIC_INIT:
        await accept_init(me, vcpu)


async def m10_no_request(me, apic):
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await smp_wmb()
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m11_no_kick(me, apic):
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await smp_wmb()
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    return 1


async def m12_no_events(vcpu):
    return False


async def m13_request_first(me, apic):
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await smp_wmb()
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m14_bit_first(me, apic, vector):
    await set_bit(KVM_APIC_SIPI, apic.pending_events)
    await smp_wmb()
    await WRITE_ONCE(apic.sipi_vector, vector)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m15_no_wmb_in_sipi(me, apic, vector):
    await WRITE_ONCE(apic.sipi_vector, vector)
    await set_bit(KVM_APIC_SIPI, apic.pending_events)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m16_no_rmb(me, vcpu):
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    pe = await xchg(vcpu.apic.pending_events, 0)
    if pe & 1 << KVM_APIC_INIT:
        await accept_init(me, vcpu)
    if pe & 1 << KVM_APIC_SIPI and await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        await accept_sipi(me, vcpu)


async def m17_no_wmb_in_init(me, apic):
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await set_bit(KVM_REQ_EVENT, apic.vcpu.requests)  # kvm_make_request() of 3.8 to 3.11: no barrier of its own
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


def m18_bsp_waits(vcpu):
    return KVM_MP_STATE_INIT_RECEIVED


async def m19_sipi_stays(me, vcpu):
    apic = vcpu.apic
    if not await READ_ONCE(apic.pending_events):
        return
    if await test_and_clear_bit(KVM_APIC_INIT, apic.pending_events):
        await accept_init(me, vcpu)
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        if await test_and_clear_bit(KVM_APIC_SIPI, apic.pending_events):
            await accept_sipi(me, vcpu)


async def m22_double_init(me, apic):
    await apic_dm_init(me, apic)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m23_tmr_after_irr(me, apic, vector, trig_mode):
    if await apic.vm.calls.apic_test_and_set_irr(apic, vector):
        return 0
    if trig_mode:
        await set_bit(vector & 31, apic.tmr[vector >> 5])
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1


async def m24_hint_first(apic, vector):
    await WRITE_ONCE(apic.irr_pending, True)
    return await test_and_set_bit(vector & 31, apic.irr[vector >> 5])


# ---- what must hold; each check watches as few cells as it can, for what is watched together cannot be reordered


class OnTarget(Monitor):
    """A check on one vCPU."""

    def __init__(self, vcpu, watches, **ghost):
        super().__init__(watches, **ghost)
        self.vcpu = vcpu

    def own(self, step):
        """Is it the vCPU's own thread, or an ioctl that holds its mutex?"""
        return step.thread == self.vcpu.name or self.vcpu.mutex_word.value == step.thread

    def latched(self, step, nr):
        """Does somebody else's step set event bit `nr`?"""
        return step.cell is self.vcpu.apic.pending_events and not self.own(step) and step.after >> nr & 1 and step.writes

    def taken(self, step, nr):
        """Does the step take event bit `nr` out, to act on it?"""
        here = step.cell is self.vcpu.apic.pending_events and step.op.code == Code.RMW
        return here and step.before & ~step.after & 1 << nr


class SingleWriter(OnTarget):
    """mp_state changes only on its own thread, or under the vCPU's mutex."""

    check = "I-I1"

    def on_step(self, step):
        if step.writes and not self.own(step):
            return Violation(self.check, f"{step.thread} wrote {step.cell.label} = {MP_STATE_NAMES[step.after]}", (step.n,))
        return None


class InitNotOverwritten(OnTarget):
    """INIT is never lost: what a sender stored in mp_state is not overwritten by the vCPU's own store."""

    check = "I-I2"

    def on_step(self, step):
        if not step.writes:
            return None
        if not self.own(step):
            self.ghost["sent"] = step.after == KVM_MP_STATE_INIT_RECEIVED
            self.where["init"] = step.n
        elif self.ghost["sent"] and step.after != KVM_MP_STATE_INIT_RECEIVED:
            text = f"{self.vcpu.name}'s INIT is lost: mp_state INIT_RECEIVED <- {MP_STATE_NAMES[step.after]}"
            return Violation(self.check, text, (self.where["init"], step.n))
        return None


class InitNotWiped(OnTarget):
    """INIT is never lost: a latched INIT leaves pending_events only by being taken."""

    check = "I-I2"

    def on_step(self, step):
        if self.latched(step, KVM_APIC_INIT):
            self.where["init"] = step.n
        if step.before & ~step.after & 1 << KVM_APIC_INIT and not self.taken(step, KVM_APIC_INIT):
            return Violation(self.check, f"{step.thread} wiped {self.vcpu.name}'s latched INIT", (self.where["init"], step.n))
        return None


class SipiNotEaten(OnTarget):
    """A SIPI is not taken while the INIT before it is still latched: it belongs to that INIT."""

    check = "I-I3"

    def on_step(self, step):
        for nr, event in ((KVM_APIC_INIT, "init"), (KVM_APIC_SIPI, "sipi")):
            if self.latched(step, nr) and not step.before >> nr & 1:
                self.where[event] = step.n
        if self.taken(step, KVM_APIC_SIPI) and step.after >> KVM_APIC_INIT & 1:
            text = f"{self.vcpu.name} takes the SIPI while the INIT before it is still latched"
            return Violation(self.check, text, (self.where["init"], self.where["sipi"], step.n))
        return None


class VectorFresh(OnTarget):
    """A vCPU starts at a vector that was sent after its last processed INIT.

    Ghost `sent`: the vectors stored since that INIT, with an "I" for each INIT that is not processed yet.
    """

    check = "I-I4"

    def on_step(self, step):
        apic, ghost = self.vcpu.apic, self.ghost
        if step.cell is not apic.sipi_vector:
            if self.taken(step, KVM_APIC_INIT):
                ghost["sent"] = after_last_init(ghost["sent"])
            elif step.writes and not self.own(step) and self._is_init(step):
                ghost["sent"] = (*ghost["sent"], "I")
        elif step.op.code != Code.LOAD or step.kind != 0:
            ghost["sent"] = (*ghost["sent"], step.after)
        else:
            if self.watches[0] is self.vcpu.mp_state:  # before the patch INIT is processed here
                ghost["sent"] = after_last_init(ghost["sent"])
            if step.result not in ghost["sent"]:
                text = f"{self.vcpu.name} starts at vector {step.result}, which no SIPI after its last INIT carried"
                return Violation(self.check, text, (step.n,))
        return None

    def _is_init(self, step):
        if step.cell is self.vcpu.mp_state:
            return step.after == KVM_MP_STATE_INIT_RECEIVED
        return step.after >> KVM_APIC_INIT & 1 and not step.after & ~step.before & 1 << KVM_APIC_SIPI


def after_last_init(sent):
    return sent[len(sent) - sent[::-1].index("I") :] if "I" in sent else sent


class BspNeverWaits(OnTarget):
    """The BSP is never in INIT_RECEIVED."""

    check = "I-I5"

    def on_step(self, step):
        if step.writes and step.after == KVM_MP_STATE_INIT_RECEIVED:
            return Violation(self.check, f"{step.thread} put the BSP into INIT_RECEIVED, and nobody sends it a SIPI", (step.n,))
        return None


class NoGuestCodeInWfs(OnTarget):
    """A vCPU that waits for SIPI does not enter the guest.  mp_state is read unwatched: by I-I1 only this thread writes it."""

    check = "I-I6"

    def on_step(self, step):
        state = self.vcpu.mp_state.value
        if step.op.fn == "vm_enter" and step.after & IN_GUEST and state in (1, KVM_MP_STATE_INIT_RECEIVED):
            return Violation(self.check, f"{self.vcpu.name} enters the guest in {MP_STATE_NAMES[state]}", (step.n,))
        return None


# ---- who runs

OLD, FIRST, SECOND = 7, 8, 9  # SIPI vectors: a stale one, the first round's, the last round's
IRQ = 0xEC  # Linux's LOCAL_TIMER_VECTOR


def send(dest, *ipis):
    """A guest program that writes the ICR for each of (mode, vector), back to back, and halts."""

    async def sender(cpu):
        for mode, vector in ipis:
            await cpu.write_icr(dest, mode, vector)

    return sender


INIT, SIPI1, SIPI2 = (APIC_DM_INIT, 0), (APIC_DM_STARTUP, FIRST), (APIC_DM_STARTUP, SECOND)


async def run_on(cpu):
    """What the AP starts with: it runs and never halts."""
    await cpu.compute()


async def no_eoi(cpu):
    """A handler that has not come to its EOI yet."""


async def migrate(me):
    """SIPI is sent; then vCPU1 moves to a destination whose APIC has latched nothing."""
    ap = me.vm.vcpus[1]
    await apic_accept_irq(me, ap.apic, *SIPI2, True, False)
    await me.pause(ap)
    state = await kvm_arch_vcpu_ioctl_get_mpstate(me, ap)
    await WRITE_ONCE(ap.apic.pending_events, 0)
    await kvm_arch_vcpu_ioctl_set_mpstate(me, ap, state)
    await me.resume(ap)


#: the set-ups in which vCPU1 is to be started by INIT and SIPI
STARTS = ("plain", "irq", "two_rounds", "stale_sipi")


class InitSipi(Scenario):
    """INIT and SIPI to a vCPU that is about to halt."""

    name = "init_sipi"
    patch = "66450a21f996 KVM: x86: Rework INIT and SIPI handling (2013)"
    setups = {
        "plain": Setup("vCPU0 sends INIT and SIPI back to back; vCPU1 is about to HLT"),
        "irq": Setup("INIT and SIPI while a timer interrupt wakes vCPU1 from HLT: an unrelated KVM_REQ_EVENT"),
        "init_only": Setup("vCPU0 sends INIT only; vCPU1 computes and never exits by itself"),
        "two_rounds": Setup("INIT, SIPI, INIT, SIPI with two vectors"),
        "stale_sipi": Setup("plain, and an old SIPI is still pending at vCPU1"),
        "bsp_init": Setup("vCPU1 sends INIT and SIPI to vCPU0, the boot processor, which restarts and ignores the SIPI"),
        "edge_irqs": Setup("no INIT: two edge interrupts to a halting vCPU1"),
        "level_irq": Setup("no INIT: one level interrupt to vCPU1, which is about to look for interrupts"),
        "migration": Setup("vCPU1 waits for SIPI; it is moved by KVM_GET/SET_MP_STATE right after the SIPI was sent"),
    }
    variants = {
        "before": Variant(
            "3.8: senders and the vCPU both write mp_state", BEFORE,
            {**dict.fromkeys(("plain", "irq", "init_only", "two_rounds", "stale_sipi"), Sometimes), "bsp_init": Always},
            UNPROMISED_BEFORE,
        ),
        "seed": Variant(
            "the patch as committed: events are latched, and taken in two steps", {"kvm_apic_accept_events": accept_events_seed},
            dict.fromkeys(("irq", "two_rounds", "stale_sipi"), Sometimes),
        ),
        "latch": Variant("3.10 and 3.11: both events are taken in one xchg (the machine as it is)"),
        "today": Variant(
            "since 6.0: two steps behind an early return", TODAY, dict.fromkeys(("two_rounds", "stale_sipi"), Sometimes)
        ),
        "I-M6": Variant(
            "INIT uses |= instead of =", {"apic_dm_init": m6_init_ors}, dict.fromkeys(("two_rounds", "stale_sipi"), Sometimes)
        ),
        "I-M7": Variant("SIPI is processed before INIT", {"kvm_apic_accept_events": m7_sipi_first}, dict.fromkeys(STARTS, Sometimes)),
        "I-M10": Variant("INIT without KVM_REQ_EVENT, only a kick", {"apic_dm_init": m10_no_request}, {"init_only": Always}),
        "I-M11": Variant("INIT without a kick", {"apic_dm_init": m11_no_kick}, {"init_only": Always, "bsp_init": Sometimes}),
        "I-M12": Variant(
            "runnable() ignores pending_events", {"kvm_apic_has_events": m12_no_events},
            dict.fromkeys((*STARTS, "bsp_init"), Sometimes),
        ),
        "I-M13": Variant("INIT requests before it latches", {"apic_dm_init": m13_request_first}, {"init_only": Sometimes}),
        "I-M14": Variant(
            "SIPI's bit before its vector", {"apic_dm_startup": m14_bit_first}, dict.fromkeys((*STARTS, "migration"), Sometimes)
        ),
        "I-M15": Variant(
            "SIPI without smp_wmb(): hidden by x86", {"apic_dm_startup": m15_no_wmb_in_sipi},
            dict.fromkeys((*STARTS, "migration"), {"pso": Sometimes}),
        ),
        "I-M16": Variant("no smp_rmb() before the vector is read: xchg orders it", {"kvm_apic_accept_events": m16_no_rmb}),
        "I-M17": Variant(
            "INIT without smp_wmb(): hidden by x86", {"apic_dm_init": m17_no_wmb_in_init}, {"init_only": {"pso": Sometimes}}
        ),
        "I-M18": Variant("INIT makes the BSP wait for SIPI", {"mp_state_after_init": m18_bsp_waits}, {"bsp_init": Always}),
        "I-M19": Variant(
            "a SIPI that nobody waits for stays pending", {"kvm_apic_accept_events": m19_sipi_stays},
            dict.fromkeys(("two_rounds", "bsp_init"), Sometimes),
        ),
        "I-M20": Variant(
            "KVM_GET_MP_STATE does not accept events", {"get_mpstate_accept": no_accept}, {"migration": Sometimes}
        ),
        "I-M22": Variant("INIT's request and kick twice: harmless", {"apic_dm_init": m22_double_init}),
        "I-M23": Variant("TMR is set after IRR", {"apic_dm_fixed": m23_tmr_after_irr}, {"level_irq": Sometimes}),
        "I-M24": Variant(
            "irr_pending before the IRR bit (the code of 3.8 to 3.18)", {"apic_test_and_set_irr": m24_hint_first},
            {"edge_irqs": Sometimes},
        ),
    }  # fmt: skip

    def build(self, vm, setup):
        vm.add_vcpus(2, vectors=(IRQ,) if setup in ("irq", "edge_irqs", "level_irq") else ())
        bsp, ap = vm.vcpus
        ap.mp_state.init = KVM_MP_STATE_RUNNABLE  # it ran before: this is a reboot, a kexec, or CPU hotplug
        ap.programs = {0: busy if setup == "init_only" else idle, FIRST << 12: run_on, SECOND << 12: run_on}
        bsp.programs[0] = send(1, INIT, SIPI2)
        if setup == "irq":
            ap.mp_state.init = KVM_MP_STATE_HALTED
            ap.programs[0], ap.irq_handler = busy, no_eoi
            ap.private(if_flag=True)
        elif setup == "migration":
            bsp.programs[0] = idle
            ap.mp_state.init, ap.regs.init = KVM_MP_STATE_INIT_RECEIVED, (1, RESET_CS_BASE)
        elif setup == "init_only":
            bsp.programs[0] = send(1, INIT)
        elif setup == "two_rounds":
            bsp.programs[0] = send(1, INIT, SIPI1, INIT, SIPI2)
        elif setup == "stale_sipi":
            ap.apic.pending_events.init = 1 << KVM_APIC_SIPI
            ap.apic.sipi_vector.init = OLD
            ap.requests.init = 1 << KVM_REQ_EVENT
        elif setup == "bsp_init":
            bsp.programs[0] = idle
            ap.programs[0] = send(0, INIT, SIPI2)
        elif setup in ("edge_irqs", "level_irq"):
            bsp.programs[0] = idle
        if setup == "level_irq":
            ap.requests.init = 1 << KVM_REQ_EVENT  # vCPU1 is about to look for interrupts anyway
        if setup in ("irq", "edge_irqs", "level_irq"):
            Device(vm, "timer0", 1, IRQ, level=setup == "level_irq", times=2 if setup == "edge_irqs" else 1)
        if setup == "migration":
            Userspace(vm, "userspace", migrate)

    def target(self, vm):
        return vm.vcpus[0 if vm.setup == "bsp_init" else 1]

    def monitors(self, vm):
        v = self.target(vm)
        apic = v.apic
        events = [v.mp_state if vm.calls.apic_dm_init is dm_init_before else apic.pending_events, apic.sipi_vector]
        found = [
            SingleWriter(v, [v.mp_state]),
            InitNotOverwritten(v, [v.mp_state], sent=False),
            InitNotWiped(v, [apic.pending_events]),
            SipiNotEaten(v, [apic.pending_events]),
            VectorFresh(v, events, sent=(OLD,) if apic.sipi_vector.init == OLD else ()),
            NoGuestCodeInWfs(v, [v.pcpu.cpu]),
        ]
        return [*found, BspNeverWaits(v, [v.mp_state])] if v.is_bsp else found

    def stuck(self, vm):
        v = self.target(vm)
        found = []
        pending = v.apic.pending_events.value
        if pending and v.task_state.value == TASK_INTERRUPTIBLE:
            found.append(Violation("I-I7", f"{v.name} sleeps while pending_events = {pending:#x}"))
        wanted = self.wanted(vm)
        reached = (v.mp_state.value, v.regs.value[1], v.pcpu.cpu.value & IN_GUEST)
        if wanted is not None and not all(w in (None, r) for w, r in zip(wanted, reached, strict=True)):
            found.append(Violation("I-L2" if v.is_bsp else "I-L1", f"{v.name}: {v.waits_for()}"))
        for reg, word in v.apic.irr.items():
            if word.value and v.mp_state.value != KVM_MP_STATE_INIT_RECEIVED and v.if_flag:
                found.append(Violation("irq", f"{v.name} never takes the interrupt in IRR{reg}: {word.value:#x}"))
        for device in vm.devices:
            if device.remote_irr.value:
                found.append(Violation("eoi", f"{device.name}'s level interrupt was handled as an edge: no EOI broadcast"))
        return found

    def wanted(self, vm):
        """The (mp_state, CS base, in the guest?) that INIT and SIPI must lead to; None: anything."""
        if vm.setup in ("edge_irqs", "level_irq"):
            return None
        if vm.setup == "bsp_init":
            return (KVM_MP_STATE_HALTED, RESET_CS_BASE, 0)
        if vm.setup == "init_only":  # before the patch the reset waits for the SIPI
            return (KVM_MP_STATE_INIT_RECEIVED, None if vm.calls.apic_dm_init is dm_init_before else RESET_CS_BASE, 0)
        return (KVM_MP_STATE_RUNNABLE, SECOND << 12, IN_GUEST)

    def outcome(self, vm):
        v = self.target(vm)
        return f"{v.name} {v.waits_for()}"
