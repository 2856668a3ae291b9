"""A message that a Hyper-V guest is owed for ever (KVM patch 3a0e7731724f, December 2018).

A synthetic timer that expires puts a message into a slot of a page that it shares with the guest.  If the slot is still full, KVM
sets the slot's pending bit and remembers that it owes the message.  The guest empties the slot, looks at the pending bit, and
asks for more (EOM) if it is set.  If KVM looks at the slot before the guest empties it, and sets the bit after the guest has
looked (S-1), nobody ever asks, and nobody ever tries again: the slot is empty, its bit is set, the message is owed for ever.

4.19 took the slot by an atomic cmpxchg, as if guest and delivery ran at once, but set the bit only afterwards, which is S-1.  It
never happened: the vCPU's own thread delivers, between two runs of the guest.  The patch therefore dropped the atomics and says
why it may.  So in the ordinary set-ups both versions are right, and what is wrong with each is seen where its ground is missing:
S-M1 and S-M2 deliver in the timer's interrupt, beside the guest (only "tlfs", the order of the Hyper-V specification, is right
there, and only for one timer at a time: two that deliver at once clear each other's bit).  In page_walk another vCPU empties
slots, as a dying Linux guest does [vmbus_wait_for_unload, 6.16]: 4.19, which stores the type twice, brings the message back; the
patch does not.  In crash that other vCPU also reads what it finds, and its EOM goes to the wrong SynIC: no version copes.

Where the sources say more than the story: msg_pending that is not set (S-M5) does not lose a one-shot message, for
stimer_start() finds its time over and marks it at once; the vCPU retries for ever and never enters the guest.  Under tso an EOI
written last does not rescue S-M1: "I owe" waits in the store buffer while the type is read, a cmpxchg (S-M2) would order them.
The acknowledgement of 4.19 can lose a pending bit (S-3, S-M14b) only with a store buffer.

Modelled: message slots, SINT, SIMP, EOM, EOI, auto-EOI, the timers' life, requests, kicks, interrupts.  Left out: time, SCONTROL
and SVERSION, event flags, userspace messages, failing copies to guest memory, dirty logging, a LAPIC in userspace.
"""

from collections.abc import Callable, Iterator
from typing import Any

from actors import hrtimer, hv_vcpu, synic
from actors.actor import Actor
from actors.guest import GuestCpu
from actors.hrtimer import (
    HrTimer,
    stimer_mark_pending,
)
from actors.hv_vcpu import (
    UNSEEN,
    HvVcpu,
    before_idle,
    computing,
    guest_cmpxchg_slot,
    never_looks,
    poll_page,
    read_and_eom,
    restore_timer,
    taker,
    walk_page,
    zero_config,
)
from actors.ops import READ_ONCE, WRITE_ONCE, cmpxchg, smp_mb
from actors.synic import (
    BEFORE,
    EAGAIN,
    ENOENT,
    HVMSG_NONE,
    HVMSG_TIMER_EXPIRED,
    HVMSG_UNMAPPED_GPA,
    MSG_PENDING,
    SINT,
    SINT_AUTO_EOI,
    SINT_MASKED,
    SLOT_SIZE,
    TIMER_PAYLOAD_SIZE,
    VECTOR,
    Synic,
    kvm_vcpu_write_guest_page,
    notify_acked_sint_419,
    raise_sint,
    synic_deliver_msg,
    synic_eom,
    synic_set_simp,
)
from actors.synic_later import BESIDE, TODAY, deliver_msg_tlfs, send_msg_no_retry, stimer_notify_direct
from actors.thread import Thread
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm


# fmt: off
# ---- mutants of the delivery: the same accesses in another order, or one missing
async def m4_no_mark(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """A busy slot is not marked."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    if await READ_ONCE(synic.slots[sint].type) != HVMSG_NONE:
        return -EAGAIN
    await kvm_vcpu_write_guest_page(synic, sint * SLOT_SIZE, message)
    return await raise_sint(me, synic, sint)

async def m5_not_owed(me: Actor, stimer: HrTimer) -> None:
    """stimer_expiration() that does not note down what it owes."""
    if not await stimer.vm.calls.stimer_send_msg(me, stimer) and not stimer.periodic:
        await WRITE_ONCE(stimer.enable, False)

async def m7_no_kick(me: Actor, stimer: HrTimer, vcpu_kick: bool) -> None:
    """stimer_mark_pending() that never kicks."""
    await stimer_mark_pending(me, stimer, False)

async def m9_acks_sint0(vcpu: HvVcpu) -> None:
    """EOM acknowledges source 0 only."""
    await vcpu.vm.calls.kvm_hv_notify_acked_sint(vcpu, 0)

async def m10_irq_first(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The interrupt before the message."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    if await READ_ONCE(slot.type) != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, MSG_PENDING)
        return -EAGAIN
    r = await raise_sint(me, synic, sint)
    if not r:
        await kvm_vcpu_write_guest_page(synic, sint * SLOT_SIZE, message)
    return r

async def m10_irq_first_tlfs(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The interrupt as soon as the slot is taken, in the order of the TLFS otherwise."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    await WRITE_ONCE(slot.flags, MSG_PENDING)
    await smp_mb()
    if await cmpxchg(slot.type, HVMSG_NONE, HVMSG_TIMER_EXPIRED) != HVMSG_NONE:
        return -EAGAIN
    r = await raise_sint(me, synic, sint)
    await WRITE_ONCE(slot.flags, 0)
    await WRITE_ONCE(slot.size, TIMER_PAYLOAD_SIZE)
    await WRITE_ONCE(slot.payload, message)
    return r

async def m11_one_byte(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """Of message_type, only the low byte is read."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    if await READ_ONCE(slot.type) & 0xFF != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, MSG_PENDING)
        return -EAGAIN
    await kvm_vcpu_write_guest_page(synic, sint * SLOT_SIZE, message)
    return await raise_sint(me, synic, sint)

async def m12_offset(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The slot is looked for at sint * 16."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    if await READ_ONCE(synic.cell_at(sint * 16)):
        await WRITE_ONCE(synic.slots[sint].flags, MSG_PENDING)
        return -EAGAIN
    await kvm_vcpu_write_guest_page(synic, sint * 16, message)
    return await raise_sint(me, synic, sint)

async def m12_whole_slot(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """All 256 bytes are written."""
    r = await synic_deliver_msg(me, synic, sint, message)
    if r == 0:
        await WRITE_ONCE(synic.slots[sint].tail, 0)
    return r

async def m13_flags_stay(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """A delivered message leaves the flags byte as it is."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    if await READ_ONCE(slot.type) != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, MSG_PENDING)
        return -EAGAIN
    for cell, value in ((slot.type, HVMSG_TIMER_EXPIRED), (slot.size, TIMER_PAYLOAD_SIZE), (slot.payload, message)):
        await WRITE_ONCE(cell, value)
    return await raise_sint(me, synic, sint)

async def m15_garbage(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """The reserved bits of the flags come from an uninitialised stack variable, as they do in the patch and in 6.16."""
    if not await READ_ONCE(synic.simp):
        return -ENOENT
    slot = synic.slots[sint]
    if await READ_ONCE(slot.type) != HVMSG_NONE:
        await WRITE_ONCE(slot.flags, 0xA4 | MSG_PENDING)
        return -EAGAIN
    await kvm_vcpu_write_guest_page(synic, sint * SLOT_SIZE, message)
    return await raise_sint(me, synic, sint)

TLFS: dict[str, Callable[..., Any]] = {**BESIDE, "synic_deliver_msg": deliver_msg_tlfs}
ACK_CLEARS: dict[str, Callable[..., Any]] = {"kvm_hv_notify_acked_sint": notify_acked_sint_419}

async def no_mfence(cpu: GuestCpu, slot: Any, seen: int) -> bool:
    """The guest's barrier is missing."""
    await cpu.store(slot.type, HVMSG_NONE)
    return True

# ---- doubtful points: what would be right
async def written_is_delivered(me: Actor, synic: Synic, sint: int, message: str) -> int:
    """A message that is in the slot is not owed, even if its interrupt could not be raised."""
    r = await synic_deliver_msg(me, synic, sint, message)
    return r if r == -EAGAIN or not await READ_ONCE(synic.simp) else 0

async def simp_retries(vcpu: HvVcpu, enable: bool) -> None:
    """Enabling the message page retries what was owed while there was none."""
    await synic_set_simp(vcpu, enable)
    await synic_eom(vcpu)
# fmt: on


# ---- who runs

HANDLERS = {"eoi_first": ("eoi", "take"), "auto_eoi": ("take",), "no_eom": ("take",), "two_timers": ("take",)}
MAIN = {"masked": ("unmask", "take", "eom"), "simp_late": ("simp",)}
TIMERS: dict[str, dict[str, Any]] = {
    "two_timers": {"owes": True},
    "no_eom": {"periodic": True},
    "ap_waits": {"enable": False, "started": False},
    "migration": {"enable": False, "started": False, "auto_enable": True, "past": True},
}


def never(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups that a variant mends."""
    return dict.fromkeys(setups, Never)


def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)


WEAK = {"tso": Sometimes, "pso": Sometimes}
DEFAULTS = ("page_walk", "eoi_first", "eoi_last", "auto_eoi", "two_timers", "busy")  # where the patch as it is never fails
QUIET = never("ap_waits")  # beside the guest, a timer that is marked makes no vCPU runnable


def target(vm: Vm) -> HvVcpu:
    """The vCPU that messages are for."""
    vcpu = vm.vcpus[0]
    assert isinstance(vcpu, HvVcpu)
    return vcpu


# ---- what must hold


class NotOverwritten(Monitor):
    """KVM fills a slot only if the message that was there is taken.  Watches type and payload."""

    check = "S-I1"

    def on_step(self, step: Step) -> Violation | None:
        if not step.writes:
            return None
        if step.cell is self.watches[0]:
            self.ghost["unread"] = self.ghost["unread"] and step.after != HVMSG_NONE
        elif self.ghost["unread"]:
            return Violation(self.check, f"{step.thread} writes {step.after} over {step.before}, which nobody took", (step.n,))
        else:
            self.ghost["unread"] = True
        return None


class NotTakenTwice(Monitor):
    """A slot is emptied at most as often as messages are due.  Watches type."""

    check = "S-I3"

    def on_step(self, step: Step) -> Violation | None:
        if not step.writes:
            return None
        if step.after != HVMSG_NONE:
            self.where["filled"] = step.n
            return None
        if step.before == HVMSG_NONE:
            return None
        self.ghost["taken"] += 1
        if self.ghost["taken"] > self.ghost["sent"]:
            fatal = tuple(self.where[event] for event in ("taken", "filled") if event in self.where)
            return Violation(self.check, f"{step.thread} takes a message that was taken before", (*fatal, step.n))
        self.where["taken"] = step.n
        return None


class SlotsApart(Monitor):
    """Delivery to one slot changes nothing in another one.  Watches all of slot 0."""

    check = "S-I4"

    def on_step(self, step: Step) -> Violation | None:
        if step.before != step.after:
            assert step.cell is not None
            return Violation(self.check, f"{step.thread} changes {step.cell.name} with a message for slot {SINT}", (step.n,))
        return None


class SynicMessage(Scenario):
    """Timer messages to one vCPU; what happens between the look at the slot and the mark decides."""

    name = "synic_message"
    live = "page_poll"  # vCPU1 is not done before the message is there
    patch = "3a0e7731724f x86: kvm: hyperv: simplify SynIC message delivery (2018)"
    functions = {**hrtimer.FUNCTIONS, **synic.FUNCTIONS, **hv_vcpu.FUNCTIONS}
    setups = {
        "page_walk": Setup("the slot is empty and a timer expires; vCPU1 empties vCPU0's page, as a dying guest does"),
        "page_poll": Setup("page_walk, and vCPU1 polls until there is a message", ("before", "after", "today")),
        "eoi_first": Setup("the slot holds A1, a timer owes B1; the handler writes EOI, then takes (Linux VMBus)"),
        "eoi_last": Setup("the same, the handler takes, then writes EOI (kvm-unit-tests)"),
        "auto_eoi": Setup("the same, the source is auto-EOI, and A1 is of type 0x80000000"),
        "no_eom": Setup("auto_eoi, the timer is periodic, and the guest never looks at the pending bit"),
        "two_timers": Setup("auto-EOI, the slot holds A1, and two timers owe B1 and C1 already"),
        "busy": Setup("the slot is empty and a timer expires; the guest computes and never exits by itself"),
        "crash": Setup("the slot holds A1, a timer owes B1; vCPU0 is dead, vCPU1 reads its page and writes EOM"),
        "masked": Setup("a timer expires while its source is masked or just after; the guest unmasks, takes, and writes EOM"),
        "simp_late": Setup("a timer expires before or after the guest enables its message page"),
        "ap_waits": Setup("userspace zeroes STIMER0_CONFIG of a vCPU that waits for INIT"),
        "migration": Setup("an auto-enable timer whose message was taken is restored: CONFIG, then COUNT"),
    }
    #: what no version of the delivery copes with, and what later patches fixed
    claims = {
        "ap_waits": Always, "migration": Always, **dict.fromkeys(("no_eom", "crash", "masked", "simp_late"), Sometimes),
    }  # fmt: skip
    variants = {
        "before": Variant(
            "4.19: the slot is taken by cmpxchg, marked after that failed", BEFORE, sometimes("page_walk", "page_poll")
        ),
        "after": Variant("the patch: look, then write; only right because the guest does not run meanwhile"),
        "no_retry": Variant(
            "5.0: a periodic tick that finds the slot busy is dropped", {"stimer_send_msg": send_msg_no_retry}, {"no_eom": Never}
        ),
        "direct": Variant(
            "5.0, direct mode: an interrupt and no message",
            {"stimer_send_msg": stimer_notify_direct},
            never("no_eom", "crash", "masked", "simp_late", "migration"),
        ),
        "today": Variant("6.16: all of the later fixes", TODAY, never("no_eom", "ap_waits", "migration")),
        "tlfs": Variant("beside the guest, in the order of the specification", TLFS, {**sometimes("two_timers"), **QUIET}),
        "S-M1": Variant(
            "the patch, called beside the guest",
            BESIDE,
            {**sometimes("eoi_first", "auto_eoi", "two_timers"), "eoi_last": WEAK, **QUIET},
        ),
        "S-M2": Variant(
            "4.19, called beside the guest",
            {**BEFORE, **BESIDE},
            {**sometimes("page_walk", "eoi_first", "auto_eoi", "two_timers"), **QUIET},
        ),
        "S-M3": Variant(
            "tlfs, and the guest has no barrier",
            {**TLFS, "guest_empty_slot": no_mfence},
            {"auto_eoi": WEAK, **sometimes("two_timers"), **QUIET},
        ),
        "S-M3v": Variant("after, and the guest has no barrier: VM exit is one", {"guest_empty_slot": no_mfence}),
        "S-M4": Variant(
            "a busy slot is not marked",
            {"synic_deliver_msg": m4_no_mark},
            {**sometimes("eoi_first", "auto_eoi"), "two_timers": Always},
        ),
        "S-M5": Variant(
            "that a message is owed is not noted down",
            {"stimer_expiration": m5_not_owed},
            {**sometimes("eoi_first", "eoi_last", "auto_eoi"), "no_eom": Never},
        ),
        "S-M7": Variant(
            "the timer does not kick the vCPU",
            {"stimer_mark_pending": m7_no_kick},
            {**sometimes("page_walk", "eoi_first", "eoi_last", "auto_eoi", "busy"), "no_eom": Always},
        ),
        "S-M9": Variant(
            "EOM acknowledges source 0 only",
            {"synic_eom": m9_acks_sint0},
            {**sometimes("eoi_first", "auto_eoi"), "two_timers": Always},
        ),
        "S-M10": Variant(
            "the interrupt before the message: harmless, and mends S-7c", {"synic_deliver_msg": m10_irq_first}, never("masked")
        ),
        "S-M10b": Variant(
            "tlfs, the interrupt before the message",
            {**TLFS, "synic_deliver_msg": m10_irq_first_tlfs},
            {**sometimes(*DEFAULTS), **QUIET},
        ),
        "S-M11": Variant("one byte of message_type is read", {"synic_deliver_msg": m11_one_byte}, sometimes("auto_eoi")),
        "S-M12": Variant(
            "the slot is looked for at sint * 16",
            {"synic_deliver_msg": m12_offset},
            sometimes(*DEFAULTS, "no_eom", "crash", "masked", "simp_late", word=Always),
        ),
        "S-M12b": Variant("all 256 bytes of the slot are written: harmless", {"synic_deliver_msg": m12_whole_slot}),
        "S-M13": Variant("delivery leaves the flags: harmless", {"synic_deliver_msg": m13_flags_stay}),
        "S-M14": Variant("an acknowledgement clears the pending bit: harmless", ACK_CLEARS),
        "S-M14b": Variant(
            "tlfs, an acknowledgement clears the pending bit",
            {**TLFS, **ACK_CLEARS},
            {"eoi_first": WEAK, **sometimes("two_timers"), **QUIET},
        ),
        "S-M15": Variant("garbage in the reserved flags, as in the kernel: harmless", {"synic_deliver_msg": m15_garbage}),
        "S-7c": Variant(
            "a message that is written is delivered, interrupt or not",
            {"synic_deliver_msg": written_is_delivered},
            never("masked"),
        ),
        "S-7d": Variant("enabling the message page retries what is owed", {"synic_set_simp": simp_retries}, never("simp_late")),
    }

    def build(self, vm: Vm, setup: str) -> None:
        """One vCPU with its SynIC, one timer or two, and perhaps another vCPU that touches the page."""
        auto = setup in ("auto_eoi", "no_eom", "two_timers")
        register = VECTOR | (SINT_AUTO_EOI if auto else SINT_MASKED if setup == "masked" else 0)
        synic = Synic(vm, "synic0", {0: VECTOR | SINT_MASKED, SINT: register})
        vcpu = HvVcpu(vm, 0, synic, (VECTOR,))
        vcpu.handler = taker(vcpu, *HANDLERS.get(setup, ("take", "eoi")))
        computes = setup in ("page_walk", "page_poll", "busy", "eoi_first", "eoi_last", "auto_eoi", "no_eom", "two_timers")
        vcpu.main = computing if computes else before_idle(vcpu, *MAIN.get(setup, ()))
        synic.simp.init = setup != "simp_late"
        HrTimer(vm, "timer0", vcpu, SINT, "B", **TIMERS.get(setup, {}))
        if setup == "two_timers":
            HrTimer(vm, "timer1", vcpu, SINT, "C", owes=True)
            synic.slots[SINT].flags.init = MSG_PENDING
        if self.holds_a(setup):
            slot = synic.slots[SINT]
            slot.payload.init = "A1"
            slot.type.init = HVMSG_UNMAPPED_GPA if setup == "auto_eoi" else HVMSG_TIMER_EXPIRED
            if setup != "crash":
                vcpu.apic.irr[VECTOR >> 5].init = 1 << (VECTOR & 31)
                vcpu.apic.irr_pending.init = True
                vcpu.requests.init = 1 << 11
        if setup in ("page_walk", "page_poll", "eoi_first"):
            vcpu.empty_slot = guest_cmpxchg_slot
        elif setup == "no_eom":
            vcpu.signal_eom = never_looks
        if setup in ("page_walk", "page_poll"):
            Thread(vm, "vcpu1", walk_page if setup == "page_walk" else poll_page, taken=())
        elif setup == "crash":
            vcpu.handler = taker(vcpu)
            Thread(vm, "vcpu1", read_and_eom, taken=())
        elif setup == "ap_waits":
            vcpu.prologue, vcpu.uninitialized = zero_config, True
        elif setup == "migration":
            vcpu.prologue = restore_timer

    def holds_a(self, setup: str) -> bool:
        """Does the slot hold A1 to begin with?"""
        return setup in ("eoi_first", "eoi_last", "auto_eoi", "no_eom", "crash", "two_timers")

    def sent(self, vm: Vm) -> int:
        """How many messages there are for the guest to take."""
        timers = [a for a in vm.actors if isinstance(a, HrTimer)]
        fresh = sum(t.ticks for t in timers) if vm.setup not in ("ap_waits", "migration") else 0
        if vm.calls.stimer_send_msg is stimer_notify_direct:
            fresh = 0
        return fresh + self.holds_a(vm.setup)

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        synic = target(vm).synic
        slot = synic.slots[SINT]
        return [
            NotOverwritten((slot.type, slot.payload), unread=bool(slot.type.init)),
            NotTakenTwice((slot.type,), sent=self.sent(vm), taken=0),
            SlotsApart(synic.slots[0].cells.values()),
        ]

    def stuck(self, vm: Vm) -> list[Violation]:
        """Liveness."""
        return list(self.left_undone(vm))

    def left_undone(self, vm: Vm) -> Iterator[Violation]:
        """What is wrong when nothing can move."""
        vcpu = target(vm)
        taken = [m for actor in vm.actors for m in getattr(actor, "taken", ())]
        slot = vcpu.synic.slots[SINT]
        if len({m for m in taken if m != UNSEEN}) < sum(m != UNSEEN for m in taken) or "" in taken:
            yield Violation("S-I2", f"a message was taken with another one's payload: {', '.join(taken)}")
        if vcpu.eagain:
            yield Violation("S-L4", f"KVM_RUN of {vcpu.name} returns -EAGAIN again and again, and no INIT has come")
        owed = [t for t in vcpu.stimers if t.msg_pending.value and t.enable.value]
        for timer in vcpu.stimers:
            if vcpu.stimer_pending_bitmap.value >> timer.index & 1:
                yield Violation("S-L1", f"{timer.name} asks for service and {vcpu.name} does not look")
        pending = "set" if slot.flags.value & MSG_PENDING else "clear"
        for timer in owed if slot.type.value == HVMSG_NONE else ():
            text = f"{timer.name} owes its message for ever: the slot is empty, its pending bit {pending}, and nobody retries"
            yield Violation("S-L2", text)
        if vm.setup in ("crash", "ap_waits", "migration"):
            return
        if slot.type.value != HVMSG_NONE:
            yield Violation("S-L1", f"{slot.payload.value} stays in its slot: no interrupt tells the guest")
        elif not owed and len(taken) < self.sent(vm) and not any(t.periodic for t in vcpu.stimers):
            yield Violation("S-L1", f"a message was lost: the guest took {', '.join(taken) or 'none'}")

    def outcome(self, vm: Vm) -> str:
        """Who took which messages, and how often the guest asked for more."""
        took = "; ".join(f"{a.name} took {', '.join(a.taken) or 'nothing'}" for a in vm.actors if hasattr(a, "taken"))
        return f"{took}; {target(vm).eoms} EOM"
