"""A vCPU's INIT overwritten by its own HLT (KVM patch 66450a21f996, March 2013).

To start a processor, the boot CPU sends it INIT, then SIPI with a start address.  Before the patch, KVM's sender wrote the
target's mp_state with plain stores; the target wrote the same variable when it halted (HALTED) and when it woke (RUNNABLE).
If the target's store lands second, the INIT is gone (I-1: HLT, I-2: un-halt), the SIPI that follows is dropped, and the guest
waits for ever for a CPU that sleeps.  The patch latches both events in apic->pending_events and lets only the target's own
thread write mp_state.  As it was first committed ("seed") it takes INIT and SIPI in two steps: an INIT and SIPI that arrive
between them lose the SIPI (I-8, I-9).  "latch" takes both in one xchg (299018f44ac5; 3.10.0 has it already and so has 3.11, no
release ships the seed).  "today" (1e17a6f8721c, since 6.0) takes two steps behind an early return: a stale SIPI brings I-8 back.

In the kernel's sources: vcpu_enter_guest() of 3.8 never looks at mp_state again, so guest code can run in INIT_RECEIVED until its
next exit (set-up init_only of "before"; why I-I6 is not promised there); a vCPU's reset sets KVM_REQ_EVENT itself; the order of
I-M24 (irr_pending before the IRR bit) is the real code of 3.8 to 3.18, fixed in 3.19.

Modelled: ICR writes (x2APIC where there are more than 255 vCPUs), the run loop with requests, mode, kicks and IPIs, HLT and
wake-up, KVM_GET/SET_MP_STATE.
Left out: SMM, nested guests, APICv, TPR.  The run loop around the patched functions is the one of later kernels (barriers in
request and kick); 3.8 to 3.11 have none there and rely on x86's locked instructions.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from actors import ops
from actors.actor import Actor, Cell
from actors.devices import Device
from actors.guest import APIC_DM_INIT, APIC_DM_STARTUP, busy, idle
from actors.lapic import (
    KVM_APIC_INIT,
    KVM_APIC_SIPI,
    Lapic,
    accept_init,
    accept_sipi,
    dm_init_before,
    dm_startup_before,
    kvm_apic_has_interrupt,
    kvm_lapic_reset,
    m24_hint_first,
)
from actors.ops import IN_GUEST, READ_ONCE, WRITE_ONCE, set_bit, smp_rmb, smp_wmb, test_and_clear_bit, xchg
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
from actors.startup import idle_after, migrate, no_eoi, run_on, send
from actors.sync import TASK_INTERRUPTIBLE
from actors.userspace import Userspace
from actors.vcpu import RESET_CS_BASE, Vcpu, kvm_arch_interrupt_allowed
from racevisor import Always, Claim, Monitor, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, alike


# One blank line between functions from here to `fmt: on`, so that a version is seen on one screen.
# fmt: off
# ---- before (3.8), senders: actors.lapic                   | seed (66450a21f996) is the machine's own apic_dm_init/_startup
async def run_prologue_before(vcpu: Vcpu) -> None:
    """KVM_RUN begins: only a SIPI resets.  [x86.c __vcpu_run, 3.8]"""
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_SIPI_RECEIVED:
        await kvm_lapic_reset(vcpu.apic)
        await vcpu.vm.calls.kvm_vcpu_reset(vcpu)
        vector = await READ_ONCE(vcpu.apic.sipi_vector)
        await vcpu.vm.calls.kvm_vcpu_deliver_sipi_vector(vcpu, vector)
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)

async def unblocked_before(vcpu: Vcpu) -> int:
    """Un-halt.  [the switch in x86.c __vcpu_run, 3.8]"""
    state = await READ_ONCE(vcpu.mp_state)
    if state == KVM_MP_STATE_HALTED:
        await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE)  # an INIT since the load above is overwritten
    elif state != KVM_MP_STATE_RUNNABLE:
        return -4  # -EINTR: userspace calls KVM_RUN again, which starts at run_prologue
    return 1

async def runnable_before(vcpu: Vcpu) -> bool:
    """Is there a reason not to sleep?  INIT_RECEIVED is none.  [x86.c kvm_arch_vcpu_runnable, 3.8]"""
    if await READ_ONCE(vcpu.mp_state) in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED):
        return True
    if await READ_ONCE(vcpu.nmi_queued):
        return True
    return await kvm_arch_interrupt_allowed(vcpu) and await kvm_apic_has_interrupt(vcpu.apic) >= 0

async def enter_guest_event_before(vcpu: Vcpu) -> bool:
    """mp_state is not looked at again: guest code may run in INIT_RECEIVED.  [x86.c vcpu_enter_guest, 3.8]"""
    return True

async def no_accept(me: Actor, vcpu: Vcpu) -> None:
    """Before the patch, and in I-M20: KVM_GET_MP_STATE only reads."""

async def set_mpstate_before(vcpu: Vcpu, state: int) -> None:
    """A plain store.  [x86.c kvm_arch_vcpu_ioctl_set_mpstate, 3.8]"""
    await WRITE_ONCE(vcpu.mp_state, state)

BEFORE: dict[str, Callable[..., Any]] = {
    "apic_dm_init": dm_init_before, "apic_dm_startup": dm_startup_before, "vcpu_run_prologue": run_prologue_before,
    "vcpu_unblocked": unblocked_before, "kvm_arch_vcpu_runnable": runnable_before, "set_mpstate": set_mpstate_before,
    "vcpu_enter_guest_event": enter_guest_event_before, "kvm_apic_accept_events": no_accept,
}
UNPROMISED_BEFORE = {"I-I1": "senders write mp_state: that is what the patch ends",
                     "I-I6": "vcpu_enter_guest() does not look at mp_state again after it serviced requests"}

# ---- kvm_apic_accept_events(): seed | latch is the machine's own (one xchg) | today
async def accept_events_seed(me: Actor, vcpu: Vcpu) -> None:
    """Two steps, and an INIT and SIPI may arrive between them.  [lapic.c, 66450a21f996]"""
    apic = vcpu.apic
    if await test_and_clear_bit(KVM_APIC_INIT, apic.pending_events):
        await accept_init(me, vcpu)
    if await test_and_clear_bit(KVM_APIC_SIPI, apic.pending_events):  # consumed even if we do not wait for it
        if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
            await smp_rmb()
            await accept_sipi(me, vcpu)

async def accept_events_today(me: Actor, vcpu: Vcpu) -> None:
    """The early return is the only difference to the seed.  [lapic.c, since 6.0: 1e17a6f8721c]"""
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    await accept_events_seed(me, vcpu)

async def dm_init_today(me: Actor, apic: Lapic) -> int:
    """case APIC_DM_INIT: the smp_wmb() is in the request now.  [lapic.c __apic_accept_irq, 6.16]"""
    await WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT)
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1

async def emulate_halt_today(vcpu: Vcpu) -> int:
    """HLT looks for events first.  [x86.c __kvm_emulate_halt, 6.16]"""
    pending = await READ_ONCE(vcpu.apic.pending_events)
    await WRITE_ONCE(vcpu.mp_state, KVM_MP_STATE_RUNNABLE if pending else KVM_MP_STATE_HALTED)
    return 1

# ---- mutants of the senders: the same accesses in another order, or one missing
ACCESS: dict[str, Callable[[Actor, Lapic, int], Awaitable[Any]]] = {
    "latch INIT": lambda me, apic, vector: WRITE_ONCE(apic.pending_events, 1 << KVM_APIC_INIT),
    "set INIT": lambda me, apic, vector: set_bit(KVM_APIC_INIT, apic.pending_events),
    "vector": lambda me, apic, vector: WRITE_ONCE(apic.sipi_vector, vector),
    "set SIPI": lambda me, apic, vector: set_bit(KVM_APIC_SIPI, apic.pending_events),
    "wmb": lambda me, apic, vector: smp_wmb(),
    "request": lambda me, apic, vector: kvm_make_request(KVM_REQ_EVENT, apic.vcpu),
    "bare request": lambda me, apic, vector: set_bit(KVM_REQ_EVENT, apic.vcpu.requests),  # 3.8 to 3.11: no barrier of its own
    "kick": lambda me, apic, vector: kvm_vcpu_kick(me, apic.vcpu),
}

async def in_order(accesses: str, me: Actor, apic: Lapic, vector: int = 0) -> int:
    """A sender made of these accesses, as in "latch INIT, wmb, request, kick": that is apic_dm_init()."""
    for access in accesses.split(", "):
        await ACCESS[access](me, apic, vector)
    return 1

def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a lambda the name that `racevisor show` prints."""
    function.__name__ = name
    return function

m6_init_ors = named("m6_init_ors", lambda *to: in_order("set INIT, request, kick", *to))  # an older SIPI survives
m10_no_request = named("m10_no_request", lambda *to: in_order("latch INIT, wmb, kick", *to))
m11_no_kick = named("m11_no_kick", lambda *to: in_order("latch INIT, wmb, request", *to))
m13_request_first = named("m13_request_first", lambda *to: in_order("request, wmb, latch INIT, kick", *to))
m14_bit_first = named("m14_bit_first", lambda *to: in_order("set SIPI, wmb, vector, request, kick", *to))
m15_no_wmb_in_sipi = named("m15_no_wmb_in_sipi", lambda *to: in_order("vector, set SIPI, request, kick", *to))
m17_no_wmb_in_init = named("m17_no_wmb_in_init", lambda *to: in_order("latch INIT, bare request, kick", *to))
m22_double_init = named("m22_double_init", lambda *to: in_order("latch INIT, wmb, request, kick, request, kick", *to))
m18_bsp_waits = named("m18_bsp_waits", lambda vcpu: KVM_MP_STATE_INIT_RECEIVED)  # as an AP does

TODAY: dict[str, Callable[..., Any]] = {"kvm_apic_accept_events": accept_events_today, "apic_dm_init": dm_init_today,
                                        "kvm_emulate_halt": emulate_halt_today}

async def m7_sipi_first(me: Actor, vcpu: Vcpu) -> None:
    """kvm_apic_accept_events(): SIPI before INIT."""
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    pe = await xchg(vcpu.apic.pending_events, 0)
    if pe & 1 << KVM_APIC_SIPI and await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        await accept_sipi(me, vcpu)
    if pe & 1 << KVM_APIC_INIT:
        await accept_init(me, vcpu)

async def m16_no_rmb(me: Actor, vcpu: Vcpu) -> None:
    """kvm_apic_accept_events() without smp_rmb()."""
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    pe = await xchg(vcpu.apic.pending_events, 0)
    if pe & 1 << KVM_APIC_INIT:
        await accept_init(me, vcpu)
    if pe & 1 << KVM_APIC_SIPI and await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        await accept_sipi(me, vcpu)

async def m19_sipi_stays(me: Actor, vcpu: Vcpu) -> None:
    """kvm_apic_accept_events(): SIPI is consumed only by who waits for it."""
    if not await READ_ONCE(vcpu.apic.pending_events):
        return
    if await test_and_clear_bit(KVM_APIC_INIT, vcpu.apic.pending_events):
        await accept_init(me, vcpu)
    if await READ_ONCE(vcpu.mp_state) == KVM_MP_STATE_INIT_RECEIVED:
        if await test_and_clear_bit(KVM_APIC_SIPI, vcpu.apic.pending_events):
            await accept_sipi(me, vcpu)

async def m12_no_events(vcpu: Vcpu) -> bool:
    """kvm_apic_has_events(): never any."""
    return False

async def m23_tmr_after_irr(me: Actor, apic: Lapic, vector: int, trig_mode: bool) -> int:
    """case APIC_DM_FIXED with TMR last."""
    if await apic.vm.calls.apic_test_and_set_irr(apic, vector):
        return 0
    if trig_mode:
        await set_bit(vector & 31, apic.tmr[vector >> 5])
    await kvm_make_request(KVM_REQ_EVENT, apic.vcpu)
    await kvm_vcpu_kick(me, apic.vcpu)
    return 1

# ---- who runs
OLD, FIRST, SECOND = 7, 8, 9  # SIPI vectors: a stale one, the first round's, the last round's
IRQ = 0xEC  # Linux's LOCAL_TIMER_VECTOR
INIT, SIPI1, SIPI2 = (APIC_DM_INIT, 0), (APIC_DM_STARTUP, FIRST), (APIC_DM_STARTUP, SECOND)
STARTS = ("plain", "irq", "two_rounds", "stale_sipi")  # the set-ups in which vCPU1 is to be started by INIT and SIPI
# irq and two_rounds cost most.  They are there for the versions and for the mutants of the receiver and of the SIPI that they
# catch; every other mutant has the verdicts there that it has in plain (INIT's missing kick is made up for by the SIPI's, ...).
LARGE = ("before", "seed", "latch", "today", "I-M7", "I-M12", "I-M14")

def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)
# fmt: on

# ---- what must hold; each check watches as few cells as it can, for what is watched together cannot be reordered


class Check(Monitor):
    """A check on one vCPU; `look` is one of the methods from single_writer on, and yields what is wrong."""

    def __init__(self, check: str, look: Callable[..., Iterator[Violation]], vcpu: Vcpu, *watches: Cell, **more: Any) -> None:
        super().__init__(watches, **more)
        self.check, self.look, self.vcpu = check, look, vcpu

    def on_step(self, step: Step) -> Violation | None:
        return next(self.look(self, step), None)

    def own(self, step: Step) -> bool:
        """Is it the vCPU's own thread, or an ioctl that holds its mutex?"""
        return step.thread == self.vcpu.name or bool(self.vcpu.mutex_word.value == step.thread)

    def latched(self, step: Step, nr: int) -> bool:
        """Does somebody else's step set event bit `nr`?"""
        return step.cell is self.vcpu.apic.pending_events and step.writes and not self.own(step) and bool(step.after >> nr & 1)

    def taken(self, step: Step, nr: int) -> bool:
        """Does the step take event bit `nr` out, to act on it?"""
        here = step.cell is self.vcpu.apic.pending_events and step.op.code == ops.Code.RMW
        return here and bool(step.before & ~step.after & 1 << nr)

    def single_writer(self, step: Step) -> Iterator[Violation]:
        """mp_state changes only on its own thread, or under the vCPU's mutex."""
        if step.cell is not None and step.writes and not self.own(step):
            yield Violation(self.check, f"{step.thread} wrote {step.cell.label} = {MP_STATE_NAMES[step.after]}", (step.n,))

    def init_not_overwritten(self, step: Step) -> Iterator[Violation]:
        """INIT is never lost: what a sender stored in mp_state is not overwritten by the vCPU's own store."""
        if step.writes and not self.own(step):
            self.ghost["sent"] = step.after == KVM_MP_STATE_INIT_RECEIVED
            self.where["init"] = step.n
        elif step.writes and self.ghost["sent"] and step.after != KVM_MP_STATE_INIT_RECEIVED:
            text = f"{self.vcpu.name}'s INIT is lost: mp_state INIT_RECEIVED <- {MP_STATE_NAMES[step.after]}"
            yield Violation(self.check, text, (self.where["init"], step.n))

    def init_not_wiped(self, step: Step) -> Iterator[Violation]:
        """INIT is never lost: a latched INIT leaves pending_events only by being taken."""
        if self.latched(step, KVM_APIC_INIT):
            self.where["init"] = step.n
        if step.before & ~step.after & 1 << KVM_APIC_INIT and not self.taken(step, KVM_APIC_INIT):
            yield Violation(self.check, f"{step.thread} wiped {self.vcpu.name}'s latched INIT", (self.where["init"], step.n))

    def sipi_not_eaten(self, step: Step) -> Iterator[Violation]:
        """A SIPI is not taken while the INIT before it is still latched: it belongs to that INIT."""
        for nr, event in ((KVM_APIC_INIT, "init"), (KVM_APIC_SIPI, "sipi")):
            if self.latched(step, nr) and not step.before >> nr & 1:
                self.where[event] = step.n
        if self.taken(step, KVM_APIC_SIPI) and step.after >> KVM_APIC_INIT & 1:
            text = f"{self.vcpu.name} takes the SIPI while the INIT before it is still latched"
            yield Violation(self.check, text, (self.where["init"], self.where["sipi"], step.n))

    def vector_fresh(self, step: Step) -> Iterator[Violation]:
        """A vCPU starts at a vector that was sent after its last processed INIT.

        Ghost `sent`: the vectors stored since that INIT, with an "I" for each INIT that is not processed yet.
        """
        mp_state, ghost = self.vcpu.mp_state, self.ghost
        if step.cell is not self.vcpu.apic.sipi_vector:
            sipi = step.after & ~step.before & 1 << KVM_APIC_SIPI
            init = step.after == KVM_MP_STATE_INIT_RECEIVED if step.cell is mp_state else step.after & 1 and not sipi
            if self.taken(step, KVM_APIC_INIT):
                self.init_processed()
            elif step.writes and not self.own(step) and init:
                ghost["sent"] = (*ghost["sent"], "I")
        elif step.op.code != ops.Code.LOAD or step.kind != 0:
            ghost["sent"] = (*ghost["sent"], step.after)
        else:
            if self.watches[0] is mp_state:  # before the patch INIT is processed here
                self.init_processed()
            if step.result not in ghost["sent"]:
                text = f"{self.vcpu.name} starts at vector {step.result}, which no SIPI after its last INIT carried"
                yield Violation(self.check, text, (step.n,))

    def init_processed(self) -> None:
        """What was sent before the last INIT no longer counts; all does if there was none."""
        sent = self.ghost["sent"]
        self.ghost["sent"] = sent[len(sent) - sent[::-1].index("I") :] if "I" in sent else sent

    def bsp_never_waits(self, step: Step) -> Iterator[Violation]:
        """The BSP is never in INIT_RECEIVED."""
        if step.writes and step.after == KVM_MP_STATE_INIT_RECEIVED:
            yield Violation(self.check, f"{step.thread} put the BSP into INIT_RECEIVED, and nobody sends it a SIPI", (step.n,))

    def no_guest_code_in_wfs(self, step: Step) -> Iterator[Violation]:
        """A vCPU that waits for SIPI does not enter the guest."""
        state = self.vcpu.mp_state.value
        if step.op.fn == "vm_enter" and step.after & IN_GUEST and state in (1, KVM_MP_STATE_INIT_RECEIVED):
            yield Violation(self.check, f"{self.vcpu.name} enters the guest in {MP_STATE_NAMES[state]}", (step.n,))

    def no_interrupt_in_wfs(self, step: Step) -> Iterator[Violation]:
        """A vCPU that waits for SIPI takes no fixed interrupt into service."""
        if len(step.after) > len(step.before) and self.vcpu.mp_state.value in (1, KVM_MP_STATE_INIT_RECEIVED):
            text = f"{self.vcpu.name} accepts interrupt {step.after[-1]:#x} while it waits for SIPI"
            yield Violation(self.check, text, (step.n,))


class InitSipi(Scenario):
    """INIT and SIPI to a vCPU that is about to halt; more vCPUs are started so one by one [smpboot.c smp_init]."""

    name = "init_sipi"
    max_vcpus = 1024  # KVM_MAX_VCPUS since 2021; 255 when the patch was made
    patch = "66450a21f996 KVM: x86: Rework INIT and SIPI handling (2013)"
    fixed = "latch"
    setups = {
        "plain": Setup("vCPU0 sends INIT and SIPI back to back; vCPU1 is about to HLT"),
        "irq": Setup("INIT and SIPI while a timer interrupt wakes vCPU1 from HLT: an unrelated KVM_REQ_EVENT", LARGE),
        "init_only": Setup("vCPU0 sends INIT only; vCPU1 computes and never exits by itself"),
        "two_rounds": Setup("INIT, SIPI, INIT, SIPI with two vectors", (*LARGE, "I-M6", "I-M15", "I-M19")),
        "stale_sipi": Setup("plain, and an old SIPI is still pending at vCPU1"),
        "bsp_init": Setup("vCPU1 sends INIT and SIPI to vCPU0, the boot processor, which restarts and ignores the SIPI"),
        "edge_irqs": Setup("no INIT: two edge interrupts to a halting vCPU1"),
        "level_irq": Setup("no INIT: one level interrupt to vCPU1, which is about to look for interrupts"),
        "migration": Setup("vCPU1 waits for SIPI; it is moved by KVM_GET/SET_MP_STATE right after the SIPI was sent"),
    }
    #: apic_clear_irr() orders its plain store of the hint against IRR only by x86's locked clear_bit()
    claims = {"edge_irqs": {"pso": Sometimes}}
    variants = {
        "before": Variant("3.8: senders and the vCPU both write mp_state", BEFORE,
                          {**sometimes(*STARTS, "init_only"), "bsp_init": Always, "migration": {"pso": Sometimes}},
                          UNPROMISED_BEFORE),
        "seed": Variant("the patch as committed: events are latched, and taken in two steps",
                        {"kvm_apic_accept_events": accept_events_seed}, sometimes("irq", "two_rounds", "stale_sipi")),
        "latch": Variant("3.10 and 3.11: both events are taken in one xchg (the machine as it is)"),
        "today": Variant("since 6.0: two steps behind an early return", TODAY, sometimes("two_rounds", "stale_sipi")),
        "I-M6": Variant("INIT uses |= instead of =", {"apic_dm_init": m6_init_ors}, sometimes("two_rounds", "stale_sipi")),
        "I-M7": Variant("SIPI is processed before INIT", {"kvm_apic_accept_events": m7_sipi_first}, sometimes(*STARTS)),
        "I-M10": Variant("INIT without KVM_REQ_EVENT, only a kick", {"apic_dm_init": m10_no_request}, {"init_only": Always}),
        "I-M11": Variant("INIT without a kick", {"apic_dm_init": m11_no_kick}, sometimes("init_only")),
        "I-M12": Variant("runnable() ignores events", {"kvm_apic_has_events": m12_no_events}, sometimes(*STARTS, "bsp_init")),
        "I-M13": Variant("INIT requests before it latches", {"apic_dm_init": m13_request_first}, sometimes("init_only")),
        "I-M14": Variant("SIPI's bit before its vector", {"apic_dm_startup": m14_bit_first}, sometimes(*STARTS, "migration")),
        "I-M15": Variant("SIPI without smp_wmb(): hidden by x86", {"apic_dm_startup": m15_no_wmb_in_sipi},
                         sometimes(*STARTS, "migration", word={"pso": Sometimes})),
        "I-M16": Variant("no smp_rmb() before the vector is read: xchg orders it", {"kvm_apic_accept_events": m16_no_rmb}),
        "I-M17": Variant("INIT without smp_wmb(): hidden by x86", {"apic_dm_init": m17_no_wmb_in_init},
                         {"init_only": {"pso": Sometimes}}),
        "I-M18": Variant("INIT makes the BSP wait for SIPI", {"mp_state_after_init": m18_bsp_waits}, {"bsp_init": Always}),
        "I-M19": Variant("a SIPI that nobody waits for stays pending", {"kvm_apic_accept_events": m19_sipi_stays},
                         {"two_rounds": Sometimes, "bsp_init": Always}),
        "I-M20": Variant("KVM_GET_MP_STATE does not accept events", {"get_mpstate_accept": no_accept}, sometimes("migration")),
        "I-M22": Variant("INIT's request and kick twice: harmless", {"apic_dm_init": m22_double_init}),
        "I-M23": Variant("TMR is set after IRR", {"apic_dm_fixed": m23_tmr_after_irr}, sometimes("level_irq")),
        "I-M24": Variant("irr_pending before the IRR bit (the code of 3.8 to 3.18)", {"apic_test_and_set_irr": m24_hint_first},
                         sometimes("edge_irqs")),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """vCPU1 to the last ran before (a reboot, a kexec, CPU hotplug), unless the set-up says otherwise."""
        interrupted = setup in ("irq", "edge_irqs", "level_irq")
        vm.add_vcpus(vm.size, vectors=(IRQ,) if interrupted else ())
        bsp, *aps = vm.vcpus
        rounds = {"init_only": (INIT,), "two_rounds": (INIT, SIPI1, INIT, SIPI2)}.get(setup, (INIT, SIPI2))
        turn = self.turns(vm) if setup in STARTS else {}
        bsp.programs[0] = send(range(1, vm.size), *rounds, turn=turn) if setup in (*STARTS, "init_only") else idle
        for ap in aps:
            ap.mp_state.init = KVM_MP_STATE_HALTED if setup == "irq" else KVM_MP_STATE_RUNNABLE
            ap.programs = {0: busy if setup in ("irq", "init_only") else idle, FIRST << 12: run_on, SECOND << 12: run_on}
            if ap.id in turn and setup != "irq":
                ap.programs[0] = idle_after(turn[ap.id])
            if setup == "irq":
                ap.irq_handler = no_eoi
                ap.private(if_flag=True)
            elif setup == "stale_sipi":
                ap.apic.pending_events.init, ap.apic.sipi_vector.init = 1 << KVM_APIC_SIPI, OLD
            elif setup == "migration":
                ap.mp_state.init, ap.regs.init = KVM_MP_STATE_INIT_RECEIVED, (1, RESET_CS_BASE)
            if setup in ("stale_sipi", "level_irq"):  # it is about to look for events and interrupts anyway
                ap.requests.init = 1 << KVM_REQ_EVENT
            if interrupted:
                times = 2 if setup == "edge_irqs" else 1
                Device(vm, f"timer{ap.id - 1}", ap.id, IRQ, level=setup == "level_irq", times=times).armed = turn.get(ap.id)
        if setup == "bsp_init":
            aps[0].programs[0] = send([0], *rounds)
        elif setup == "migration":
            Userspace(vm, "userspace", migrate(*SIPI2))

    def turns(self, vm: Vm) -> dict[int, Cell]:
        """From the third vCPU on: the word by which it, or its timer, learns that it is the next one.

        vCPU0 starts one after the other.  Without that, all but the first ones sleep by then, and have nothing to lose.
        """
        cells = vm.guest_memory(**{f"turn{i}": False for i in range(2, vm.size)}) if vm.size > 2 else None
        return {i: getattr(cells, f"turn{i}") for i in range(2, vm.size)}

    def targets(self, vm: Vm) -> list[Vcpu]:
        """The vCPUs that INIT is sent to, or that are interrupted."""
        return [v for v in (vm.vcpus[:1] if vm.setup == "bsp_init" else vm.vcpus[1:]) if vm.in_question(v)]

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        return [check for v in self.targets(vm) for check in self.checks(vm, v)]

    def checks(self, vm: Vm, v: Vcpu) -> list[Monitor]:
        """What must hold for one target at every step."""
        mp_state, events, vector, mutex = v.mp_state, v.apic.pending_events, v.apic.sipi_vector, (v.mutex_word,)
        inits = mp_state if vm.calls.apic_dm_init is dm_init_before else events
        found: list[Monitor] = [
            Check("I-I1", Check.single_writer, v, mp_state, reads=mutex),
            Check("I-I2", Check.init_not_overwritten, v, mp_state, reads=mutex, sent=False),
            Check("I-I2", Check.init_not_wiped, v, events, reads=mutex),
            Check("I-I3", Check.sipi_not_eaten, v, events, reads=mutex),
            Check("I-I4", Check.vector_fresh, v, inits, vector, reads=mutex, sent=(OLD,) if vector.init == OLD else ()),
            Check("I-I6", Check.no_guest_code_in_wfs, v, v.pcpu.cpu, reads=(mp_state,)),
            Check("I-I6", Check.no_interrupt_in_wfs, v, v.apic.isr, reads=(mp_state,)),
        ]
        return [*found, Check("I-I5", Check.bsp_never_waits, v, mp_state)] if v.is_bsp else found

    def stuck(self, vm: Vm) -> list[Violation]:
        """Liveness."""
        found = [violation for v in self.targets(vm) for violation in self.left_undone(vm, v)]
        for device in (d for d in vm.devices if vm.in_question(d) and d.remote_irr.value):
            found.append(Violation("eoi", f"{device.name}'s level interrupt was handled as an edge: no EOI broadcast"))
        return found

    def left_undone(self, vm: Vm, v: Vcpu) -> Iterator[Violation]:
        """What one target waits for in vain."""
        if (pending := v.apic.pending_events.value) and v.task_state.value == TASK_INTERRUPTIBLE:
            yield Violation("I-I7", f"{v.name} sleeps while pending_events = {pending:#x}")
        reached = (v.mp_state.value, v.regs.value[1], v.pcpu.cpu.value & IN_GUEST)
        if (wanted := self.wanted(vm)) and not all(w in (None, r) for w, r in zip(wanted, reached, strict=True)):
            yield Violation("I-L2" if v.is_bsp else "I-L1", f"{v.name}: {v.waits_for()}")
        for reg, word in v.apic.irr.items():
            if word.value and v.mp_state.value != KVM_MP_STATE_INIT_RECEIVED and v.if_flag:
                yield Violation("irq", f"{v.name} never takes the interrupt in IRR{reg}: {word.value:#x}")

    def wanted(self, vm: Vm) -> tuple[int, int | None, int] | None:
        """The (mp_state, CS base, in the guest?) that INIT and SIPI must lead to; None: anything."""
        if vm.setup in ("edge_irqs", "level_irq"):
            return None
        if vm.setup == "bsp_init":
            return (KVM_MP_STATE_HALTED, RESET_CS_BASE, 0)
        if vm.setup == "init_only":  # before the patch the reset waits for the SIPI
            return (KVM_MP_STATE_INIT_RECEIVED, None if vm.calls.apic_dm_init is dm_init_before else RESET_CS_BASE, 0)
        return (KVM_MP_STATE_RUNNABLE, SECOND << 12, IN_GUEST)

    def outcome(self, vm: Vm) -> str:
        """Where the targets ended, those that ended alike together."""
        return alike(((v.name, f" {v.waits_for()}") for v in self.targets(vm)), apart=0)
