"""A message that a Hyper-V guest is owed for ever (KVM patch 3a0e7731724f, December 2018).

A synthetic timer that expires puts a message into a slot of a page that it shares with the guest.  If the slot is still full, KVM
sets the slot's pending bit and remembers that it owes the message.  The guest empties the slot, looks at the pending bit, and
asks for more (EOM) if it is set.  If KVM looks at the slot before the guest empties it, and sets the bit after the guest has
looked (S-1), nobody ever asks, and nobody ever tries again: the slot is empty, its bit is set, the message is owed for ever.

4.19 took the slot by an atomic cmpxchg, as if guest and delivery ran at once, but set the bit only afterwards, which is S-1.  It
never happened: the vCPU's own thread delivers, between two runs of the guest.  The patch therefore dropped the atomics and says
why it may.  So in the ordinary set-ups both versions are right, and what is wrong with each is seen where its ground is missing:
S-M1 and S-M2 deliver in the timer's interrupt, beside the guest (only "tlfs", the order of the Hyper-V specification, is right
there, and only for one timer of a slot at a time: two that deliver at once clear each other's bit).  In page_walk another vCPU
empties slots, as a dying Linux guest does [vmbus_wait_for_unload, 6.16]: 4.19, which stores the type twice, brings the message
back; the patch does not.  In page_read it also copies the payload, and meets half a message (S-2): the type is visible first, in
4.19 by design, in the patch because that is the order of the addresses.  In crash its EOM goes to its own SynIC (S-4), and what
vCPU0's owes is never retried: no version copes, not even S-2, which mends page_read.

Where the sources say more than the story: msg_pending that is not set (S-M5) does not lose a one-shot message, for
stimer_start() finds its time over and marks it at once; the vCPU retries for ever and never enters the guest.  Under tso an EOI
written last does not rescue S-M1: "I owe" waits in the store buffer while the type is read, a cmpxchg (S-M2) would order them.
The acknowledgement of 4.19 beside the guest takes away a bit that was just set (S-3: S-M14b, in full), but then finds that a
message is owed, and retries; for ever lost is the message only where "I owe" still waits in a store buffer (eoi_first).

Doubtful points of the patch, each with what would mend it: S-7c (a message in the slot is still owed if its interrupt could not
be raised), S-7d and S-7e (no retry when the page appears), S-8 (SCONTROL is not asked), S-7f (what the dirty log hears).

Left out: time, SIEFP and event flags, SVERSION, messages from userspace, exits to userspace, notifiers of GSIs, APICv, a LAPIC
that the guest disabled (synic_set_irq() is 0 then: -EFAULT, otherwise as S-7c), kvm->srcu.  Timers of two
slots run on the vCPU only (two_sints), not beside the guest.
"""

from collections.abc import Iterator
from typing import Any

from actors import hrtimer, hv_guest, synic, synic_later, synic_mutants
from actors.hrtimer import MOST_COUNTED
from actors.hv_guest import UNSEEN, copy_of
from actors.hv_vcpu import HvVcpu
from actors.synic import BEFORE, HVMSG_NONE, MSG_PENDING, SINT
from actors.synic_later import BESIDE, TODAY, deliver_msg_tlfs
from actors.synic_setups import HOLDS_A, build, slots_in_use
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, alike

TLFS = {**BESIDE, "synic_deliver_msg": deliver_msg_tlfs}
ACK_CLEARS = {"kvm_hv_notify_acked_sint": synic_mutants.m14_ack_clears}


def never(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups that a variant mends."""
    return dict.fromkeys(setups, Never)


def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)


WEAK: Claim = {"tso": Sometimes, "pso": Sometimes}
DEFAULTS = ("page_walk", "eoi_first", "eoi_last", "auto_eoi", "two_timers", "busy")  # where the patch as it is never fails
QUIET = never("ap_waits")  # beside the guest, a timer that is marked makes no vCPU runnable

#: pso orders set_bit() of the dirty bitmap after nothing; x86 does, and 4.19 raises the interrupt in between
UNORDERED: dict[str, Claim] = {"dirty_log": {"pso": Sometimes}}
FULL = ("tlfs", "S-M1", "S-M2", "S-M4", "S-M14", "S-M14b")

#: Later fixes one by one, mends and mutants that concern one thing only: the set-ups in which they are searched.
SPECIAL = {
    "init": ("ap_waits", "migration"),
    "restore": ("ap_waits", "migration"),
    "lapic": ("no_lapic", "masked"),
    "direct_lapic": ("no_lapic", "masked"),
    "synic1": ("simp_again", "simp_late"),
    "S-2": ("page_read", "crash", "busy"),
    "S-7e": ("memslot_moves", "masked"),
    "S-7e_mb": ("memslot_moves", "masked"),
    "S-7f": ("dirty_log",),
    "S-7f_early": ("dirty_log",),
    "S-8": ("disabled", "busy", "masked"),
    "S-M5b": ("eoi_first", "auto_eoi"),
    "S-M10c": ("busy",),
    "S-M13b": ("auto_eoi",),
    "S-M13c": ("auto_eoi", "masked"),
    "S-GP": ("bad_vector",),
}

VARIANTS = {
    "before": Variant(
        "4.19: the slot is taken by cmpxchg, marked after that failed", BEFORE, sometimes("page_walk", "page_poll")
    ),
    "after": Variant("the patch: look, then write; only right because the guest does not run meanwhile", claims=UNORDERED),
    "no_retry": Variant(
        "7deec5e0df74, 5.0: a periodic tick that finds the slot busy is dropped",
        {"stimer_send_msg": synic_later.send_msg_no_retry},
        never("no_eom"),
    ),
    "direct": Variant(
        "8644f771e07c, 5.0, direct mode: an interrupt and no message",
        {"stimer_send_msg": synic_later.stimer_notify_direct},
        never("no_eom", "crash", "masked", "simp_late", "migration", "disabled"),
    ),
    "direct_lapic": Variant("direct mode asks for a LAPIC", {"stimer_send_msg": synic_later.notify_direct_if_lapic}, never("*")),
    "init": Variant(
        "013cc6ebbf41, 5.0: a disabled timer is not marked",
        {"stimer_mark_if_enabled": synic_later.mark_if_enabled},
        never("ap_waits"),
    ),
    "restore": Variant(
        "d6800af51c76: a count that userspace writes enables nothing",
        {"stimer_count_enables": synic_later.only_the_guest_enables},
        never("migration"),
    ),
    "lapic": Variant(
        "7ec37d1cbe17: no interrupt without a LAPIC", {"synic_set_irq": synic_later.set_irq_if_lapic}, never("no_lapic")
    ),
    "today": Variant(
        "6.16: all of the later fixes", TODAY, {**never("no_eom", "ap_waits", "migration", "no_lapic"), **UNORDERED}
    ),
    "synic1": Variant(
        "KVM_CAP_HYPERV_SYNIC: enabling the page zeroes it",
        {"synic_set_simp": synic_later.simp_zeroes},
        sometimes("simp_again", word=Always),
    ),
    "tlfs": Variant("beside the guest, in the order of the specification", TLFS, {**sometimes("two_timers"), **QUIET}),
    "S-M1": Variant(
        "the patch, called beside the guest",
        BESIDE,
        {**sometimes("eoi_first", "auto_eoi", "two_timers"), "eoi_last": WEAK, **QUIET},
    ),
    "S-M2": Variant(
        "4.19, called beside the guest",
        {**BEFORE, **BESIDE, **ACK_CLEARS},
        {**sometimes("page_walk", "page_poll", "eoi_first", "auto_eoi", "two_timers", "full"), **QUIET},
    ),
    "S-M3": Variant(
        "tlfs, and the guest has no barrier",
        {**TLFS, "guest_empty_slot": synic_mutants.no_mfence},
        {"auto_eoi": WEAK, **sometimes("two_timers"), **QUIET},
    ),
    "S-M3v": Variant("after, and the guest has no barrier: VM exit is one", {"guest_empty_slot": synic_mutants.no_mfence}),
    "S-M4": Variant(
        "a busy slot is not marked",
        {"synic_deliver_msg": synic_mutants.m4_no_mark},
        {**sometimes("eoi_first", "auto_eoi"), **sometimes("two_timers", "full", word=Always)},
    ),
    "S-M5": Variant(
        "that a message is owed is not noted down",
        {"stimer_expiration": synic_mutants.m5_not_owed},
        {**sometimes("eoi_first", "eoi_last", "auto_eoi"), "no_eom": Never},
    ),
    "S-M5b": Variant(
        "after an attempt nothing is owed", {"stimer_expiration": synic_mutants.m5_forgets}, sometimes("eoi_first", "auto_eoi")
    ),
    "S-M7": Variant(
        "the timer does not kick the vCPU",
        {"stimer_mark_pending": synic_mutants.m7_no_kick},
        {**sometimes("page_walk", "eoi_first", "eoi_last", "auto_eoi", "busy"), "no_eom": Always},
    ),
    "S-M9": Variant(
        "EOM acknowledges source 0 only",
        {"synic_eom": synic_mutants.m9_acks_sint0},
        {**sometimes("eoi_first", "auto_eoi"), **sometimes("two_timers", "two_sints", word=Always)},
    ),
    "S-M10": Variant(
        "the interrupt before the message: harmless, and mends S-7c",
        {"synic_deliver_msg": synic_mutants.m10_irq_first},
        never("masked"),
    ),
    "S-M10b": Variant(
        "tlfs, the interrupt before the message",
        {**TLFS, "synic_deliver_msg": synic_mutants.m10_irq_first_tlfs},
        {**sometimes(*DEFAULTS), **QUIET},
    ),
    "S-M10c": Variant(
        "S-M1, the interrupt before the message",
        {**BESIDE, "synic_deliver_msg": synic_mutants.m10_irq_first},
        sometimes("busy"),
    ),
    "S-M11": Variant(
        "one byte of message_type is read", {"synic_deliver_msg": synic_mutants.m11_one_byte}, sometimes("auto_eoi")
    ),
    "S-M12": Variant(
        "the slot is looked for at sint * 16",
        {"synic_deliver_msg": synic_mutants.m12_offset},
        sometimes(*DEFAULTS, "no_eom", "crash", "masked", "simp_late", "two_sints", word=Always),
    ),
    "S-M12b": Variant("all 256 bytes of the slot are written: harmless", {"synic_deliver_msg": synic_mutants.m12_whole_slot}),
    "S-M13": Variant(
        "delivery leaves the flags: harmless, one more EOM a message", {"synic_deliver_msg": synic_mutants.m13_flags_stay}
    ),
    "S-M13b": Variant(
        "S-M13, and the guest writes EOM until the bit is clear",
        {"synic_deliver_msg": synic_mutants.m13_flags_stay, "guest_signal_eom": hv_guest.asks_on},
        sometimes("auto_eoi"),
    ),
    "S-M13c": Variant("only that guest: harmless", {"guest_signal_eom": hv_guest.asks_on}),
    "S-M14": Variant("an acknowledgement clears the pending bit: harmless", ACK_CLEARS),
    "S-M14b": Variant(
        "S-3: tlfs, an acknowledgement clears the pending bit",
        {**TLFS, **ACK_CLEARS},
        {"eoi_first": WEAK, **sometimes("two_timers", "full"), **QUIET},
    ),
    "S-M15": Variant(
        "garbage in the reserved flags, as in the kernel: harmless", {"synic_deliver_msg": synic_mutants.m15_garbage}
    ),
    "S-2": Variant("the type of a message is stored last", {"synic_deliver_msg": synic_later.type_last}, never("page_read")),
    "S-7c": Variant(
        "a message that is written is delivered, interrupt or not",
        {"synic_deliver_msg": synic_later.written_is_delivered},
        never("masked"),
    ),
    "S-7d": Variant(
        "enabling the message page retries what is owed", {"synic_set_simp": synic_later.simp_retries}, never("simp_late")
    ),
    "S-7e": Variant("new memslots retry what is owed", {"memslot_is_back": synic_later.memslot_retries}, {"memslot_moves": WEAK}),
    "S-7e_mb": Variant(
        "S-7e, with a barrier between owing and looking",
        {"memslot_is_back": synic_later.memslot_retries, "stimer_expiration": synic_later.owes_before_it_looks},
        never("memslot_moves"),
    ),
    "S-7f": Variant(
        "delivery does not mark the page dirty",
        {"mark_page_dirty": synic_mutants.never_dirty},
        sometimes("dirty_log", word=Always),
    ),
    "S-7f_early": Variant(
        "the page is marked dirty before it is written",
        {"synic_deliver_msg": synic_mutants.dirty_first},
        sometimes("dirty_log"),
    ),
    "S-8": Variant("delivery asks for SCONTROL.enable", {"synic_deliver_msg": synic_later.asks_scontrol}, never("disabled")),
    "S-GP": Variant("a SINT takes any vector", {"synic_set_sint": synic_mutants.any_vector}, sometimes("bad_vector")),
}


def general(name: str, about: str) -> dict[str, Setup]:
    """A set-up for every variant that is not special to others."""
    return {name: Setup(about, tuple(v for v in VARIANTS if v not in SPECIAL or name in SPECIAL[v]))}


def special(name: str, about: str, *variants: str) -> dict[str, Setup]:
    """A set-up for both versions, for the variants that are special to it, and for these."""
    return {name: Setup(about, ("before", "after", *variants, *(v for v, where in SPECIAL.items() if name in where)))}


SETUPS = {
    **general("page_walk", "the slot is empty and a timer expires; vCPU1 empties vCPU0's page, as a dying guest does"),
    **special("page_poll", "page_walk, and vCPU1 polls until there is a message", "today", "S-M2"),
    **special("page_read", "page_poll, and vCPU1 copies the payload before it empties the slot", "today", "tlfs"),
    **general("eoi_first", "the slot holds A1, a timer owes B1; the handler writes EOI, then takes (Linux VMBus)"),
    **general("eoi_last", "the same, the handler takes, then writes EOI (kvm-unit-tests)"),
    **general("auto_eoi", "the same, the source is auto-EOI, and A1 is of type 0x80000000"),
    **general("no_eom", "auto_eoi, the timer is periodic, and the guest never looks at the pending bit"),
    **special("full", "eoi_first, and the handler never takes", *FULL),
    **general("two_timers", "auto-EOI, the slot holds A1, and two timers owe B1 and C1 already"),
    **special("two_sints", "two_timers, and C1 is for slot 15, which holds D1", "S-M9", "S-M12", "S-M12b"),
    **general("busy", "the slot is empty and a timer expires; the guest computes and never exits by itself"),
    **general("crash", "the slot holds A1, a timer owes B1; vCPU0 is dead, vCPU1 reads its page and writes EOM"),
    **general("masked", "a timer expires while its source is masked or just after; the guest unmasks, takes, and writes EOM"),
    **special("bad_vector", "the guest gives the source vector 5 (#GP); a timer expires before or after that"),
    **special("disabled", "a timer expires before or after the guest clears SCONTROL.enable", "direct"),
    **general("simp_late", "a timer expires before or after the guest enables its message page"),
    **special("simp_again", "the slot holds A1, a timer has expired; the guest enables its message page again, then takes"),
    **special("memslot_moves", "a timer has expired; userspace moves the memslot of the message page", "today"),
    **special(
        "dirty_log", "a timer has expired; userspace copies the message page for migration; the handler only EOIs", "today"
    ),
    **general("ap_waits", "userspace zeroes STIMER0_CONFIG of a vCPU that waits for INIT"),
    **general("migration", "an auto-enable timer whose message was taken is restored: CONFIG, then COUNT"),
    **special("no_lapic", "a timer has expired, and userspace emulates the LAPIC", "today", "direct"),
}


#: Where a slot that stays full, or a message that is not taken, says nothing
NOT_TAKEN = ("crash", "ap_waits", "migration", "no_lapic", "disabled", "full", "dirty_log")


def targets(vm: Vm) -> list[HvVcpu]:
    """The vCPUs that messages are for: those with a SynIC."""
    return [v for v in vm.vcpus if isinstance(v, HvVcpu)]


def taken(vm: Vm) -> list[list[str]]:
    """The messages that were taken out of each page, by its guest and by the neighbour."""
    found = [list(v.taken) for v in targets(vm)]
    for actor in vm.actors:
        for message in getattr(actor, "taken", ()) if not isinstance(actor, HvVcpu) else ():
            page, colon, rest = message.rpartition(":")
            found[int(page) if colon else 0].append(rest)
    return found


def page(vcpu: HvVcpu) -> tuple[Any, ...]:
    """What there is to copy."""
    slot = vcpu.synic.slots[SINT]
    return (slot.type.value, slot.flags.value, slot.payload.value)


def copied(vcpu: HvVcpu) -> tuple[Any, ...]:
    """What userspace has copied."""
    copy: tuple[Any, ...] = vars(vcpu.vm.by_name["userspace"])[copy_of(vcpu.id)]
    return copy


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
            self.ghost["unread"] = step.after != ""
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
    """Delivery changes nothing in the slots that no timer is bound to.  Watches all of them."""

    check = "S-I4"

    def on_step(self, step: Step) -> Violation | None:
        if step.before != step.after:
            assert step.cell is not None
            return Violation(self.check, f"{step.thread} changes {step.cell.name}, for which there is no message", (step.n,))
        return None


class EagainIsMarked(Monitor):
    """A delivery that found the slot busy returns -EAGAIN with the slot marked; its caller then looks at the timer's enable.

    Watches type, flags, and the timer's enable.  A mark that is still in a store buffer at the return is not judged; one that
    was never made is seen at the end.
    """

    check = "S-I5"

    def on_step(self, step: Step) -> Violation | None:
        kind, flags, enable = self.watches
        thread = step.thread
        if step.cell is kind:
            self.ghost[f"{thread} refused"] = step.before != HVMSG_NONE
        elif step.cell is flags:
            if step.writes:
                self.where["changed"] = step.n
                if step.after & MSG_PENDING:
                    self.ghost[f"{thread} marked"] = True
                else:
                    self.ghost.pop(f"{thread} marked", None)  # its own, as an acknowledgement
        elif step.cell is enable:
            refused, marked = (self.ghost.pop(f"{thread} {word}", False) for word in ("refused", "marked"))
            if refused and marked and not flags.value & MSG_PENDING:
                return Violation(self.check, f"{thread} returns -EAGAIN, and its mark is gone", (self.where["changed"], step.n))
        return None


class NotWhileDisabled(Monitor):
    """No message is put into a slot while the guest has the SynIC disabled.  Watches type, reads SCONTROL."""

    check = "S-8"

    def on_step(self, step: Step) -> Violation | None:
        (scontrol,) = self.reads
        if step.writes and step.after != HVMSG_NONE and not scontrol.value:
            return Violation(self.check, f"{step.thread} delivers a message though SCONTROL.enable is clear", (step.n,))
        return None


class SynicMessage(Scenario):
    """Timer messages to vCPUs, one in the claims; what happens between the look at the slot and the mark decides."""

    name = "synic_message"
    live = "page_poll"  # vCPU1 is not done before the message is there
    patch = "3a0e7731724f x86: kvm: hyperv: simplify SynIC message delivery (2018)"
    max_vcpus = 1024
    functions = {**hrtimer.FUNCTIONS, **synic.FUNCTIONS, **hv_guest.FUNCTIONS}
    setups = SETUPS
    variants = VARIANTS
    #: what no version of the delivery copes with, and what later patches fixed
    claims = {
        **dict.fromkeys(("ap_waits", "migration", "no_lapic"), Always),
        **dict.fromkeys(("page_read", "no_eom", "crash", "masked", "disabled", "simp_late", "memslot_moves"), Sometimes),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """vCPUs with a SynIC and timers each, and perhaps another thread that touches their pages or what these are in."""
        build(vm, setup)

    def sent(self, vm: Vm, vcpu: HvVcpu) -> int:
        """How many messages there are for the vCPU's guest to take."""
        timers = vcpu.stimers
        fresh = sum(t.ticks for t in timers) if vm.setup not in ("ap_waits", "migration") else 0
        if vm.calls.stimer_send_msg in (synic_later.stimer_notify_direct, synic_later.notify_direct_if_lapic):
            fresh = 0
        return fresh + (len(slots_in_use(vcpu)) if vm.setup in HOLDS_A else 0)

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        return [check for vcpu in targets(vm) for check in self.checks(vm, vcpu)]

    def checks(self, vm: Vm, vcpu: HvVcpu) -> list[Monitor]:
        """What must hold for one vCPU's page at every step."""
        slots = slots_in_use(vcpu)
        others = [cell for slot in vcpu.synic.slots.values() if slot not in slots for cell in slot.cells.values()]
        found: list[Monitor] = [SlotsApart(others)]
        for slot in slots:
            found.append(NotOverwritten((slot.type, slot.payload), unread=bool(slot.type.init)))
            found.append(NotTakenTwice((slot.type,), sent=self.sent(vm, vcpu) // len(slots), taken=0))
        if vm.setup == "full":
            found.append(EagainIsMarked((slots[0].type, slots[0].flags, vcpu.stimers[0].enable)))
        elif vm.setup == "disabled":
            found.append(NotWhileDisabled((slots[0].type,), reads=(vcpu.synic.scontrol,)))
        return found

    def stuck(self, vm: Vm) -> list[Violation]:
        """Liveness."""
        pages = zip(targets(vm), taken(vm), strict=True)
        return [found for v, messages in pages if vm.in_question(v) for found in self.left_undone(vm, v, messages)]

    def left_undone(self, vm: Vm, vcpu: HvVcpu, taken: list[str]) -> Iterator[Violation]:
        """What is wrong with a vCPU and its page, from which these messages were taken, when nothing can move."""
        slot = vcpu.synic.slots[SINT]
        if len({m for m in taken if m != UNSEEN}) < sum(m != UNSEEN for m in taken) or "" in taken:
            yield Violation("S-I2", f"a message was taken with another one's payload: {', '.join(m or 'nothing' for m in taken)}")
        if vcpu.oops.value:
            yield Violation("S-L5", "NULL pointer: an interrupt for a LAPIC that is not in the kernel")
        if vcpu.eagain:
            yield Violation("S-L4", f"KVM_RUN of {vcpu.name} returns -EAGAIN again and again, and no INIT has come")
        refused = vcpu.refused + sum(t.refused + t.msg_pending.init for t in vcpu.stimers)
        if vcpu.eoms > refused + len(vcpu.taken) and refused < MOST_COUNTED and vm.setup != "masked":  # EOM unasked
            text = f"{vcpu.name} wrote EOM {vcpu.eoms} times for {len(vcpu.taken)} messages and {refused} times -EAGAIN"
            yield Violation("S-L3", text)
        owed = [t for t in vcpu.stimers if t.msg_pending.value and t.enable.value]
        for timer in vcpu.stimers:
            if vcpu.stimer_pending_bitmap.value >> timer.index & 1:
                yield Violation("S-L1", f"{timer.name} asks for service and {vcpu.name} does not look")
        for timer in owed if vm.setup not in ("disabled", "no_lapic") else ():
            its = vcpu.synic.slots[timer.sint]
            pending = "set" if its.flags.value & MSG_PENDING else "clear"
            if its.type.value == HVMSG_NONE:
                text = f"{timer.name} owes its message for ever: the slot is empty, its pending bit {pending}, and nobody retries"
                yield Violation("S-L2", text)
            elif vm.setup == "full" and pending == "clear":
                yield Violation("S-I5", f"{timer.name} owes its message, the slot is full, and its pending bit is clear")
        if vm.setup == "dirty_log" and not vcpu.synic.dirty.value and page(vcpu) != copied(vcpu):
            yield Violation("S-7f", f"the page is not dirty, and its copy lacks {slot.payload.value}")
        if vm.setup in NOT_TAKEN:
            return
        if slot.type.value != HVMSG_NONE:
            yield Violation("S-L1", f"{slot.payload.value} stays in its slot: no interrupt tells the guest")
        elif not owed and len(taken) < self.sent(vm, vcpu) and not any(t.periodic for t in vcpu.stimers):
            yield Violation("S-L1", f"a message was lost: the guest took {', '.join(taken) or 'none'}")

    def outcome(self, vm: Vm) -> str:
        """Who took which messages, how often the guest asked for more; what the dirty log will say."""
        vcpus = targets(vm)
        took = [alike(((v.name, f" took {', '.join(v.taken) or 'nothing'}") for v in vcpus), apart=0)]
        for a in vm.actors:
            if not isinstance(a, HvVcpu) and "taken" in vars(a):
                its = vars(a)["taken"]
                took.append(f"{a.name} took {len(its) if len(vcpus) > 1 else ', '.join(its) or 'nothing'}")
        text = "; ".join(took)
        text += f"; {sum(v.eoms for v in vcpus)} EOM" + (
            f"; {sum(v.faults for v in vcpus)} #GP" if vm.setup == "bad_vector" else ""
        )
        if vm.setup != "dirty_log":
            return text
        copy = "copy complete" if all(page(v) == copied(v) for v in vcpus) else "copy old"
        return f"{text}; {copy}, page {'dirty' if any(v.synic.dirty.value for v in vcpus) else 'clean'}"
