"""The machines of the races about SynIC messages: who runs, what the guest does, and what is in the slots to begin with."""

from __future__ import annotations

from typing import Any

from actors.hrtimer import KVM_REQ_HV_STIMER, HrTimer
from actors.hv_guest import (
    BAD_VECTOR,
    before_idle,
    computing,
    copy_of,
    guest_cmpxchg_slot,
    log_dirty,
    move_memslot,
    never_looks,
    poll_page,
    read_and_eom,
    read_page,
    restore_timer,
    taker,
    walk_page,
    zero_config,
)
from actors.hv_vcpu import HvVcpu
from actors.requests import KVM_REQ_EVENT
from actors.synic import (
    HVMSG_NONE,
    HVMSG_TIMER_EXPIRED,
    HVMSG_UNMAPPED_GPA,
    LAST_SINT,
    MSG_PENDING,
    SINT,
    SINT_AUTO_EOI,
    SINT_MASKED,
    VECTOR,
    Slot,
    Synic,
)
from actors.thread import Thread

#: What the interrupt handler does (else: takes, then EOI), and what the guest does besides (else: computes)
HANDLERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("auto_eoi", "no_eom", "two_timers"), ("take",)),
    **dict.fromkeys(("full", "dirty_log"), ("eoi",)),
    "eoi_first": ("eoi", "take"),
    "two_sints": ("take", "take_last"),
    "crash": (),
}
MAIN: dict[str, tuple[str, ...]] = {
    "masked": ("unmask", "take", "eom"),
    "bad_vector": ("bad_vector",),
    "disabled": ("disable",),
    "simp_late": ("simp",),
    "simp_again": ("simp", "take"),
    **dict.fromkeys(("crash", "ap_waits", "migration"), ()),
}
#: Who else runs ("": the neighbour), and what it remembers
OTHERS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "page_walk": ("", walk_page, {"taken": ()}),
    "page_poll": ("", poll_page, {"taken": ()}),
    "page_read": ("", read_page, {"taken": ()}),
    "crash": ("", read_and_eom, {"taken": (), "eoms": 0}),
    "memslot_moves": ("userspace", move_memslot, {}),
    "dirty_log": ("userspace", log_dirty, {}),
}
TIMERS: dict[str, dict[str, Any]] = {
    "two_timers": {"owes": True},
    "two_sints": {"owes": True},
    "no_eom": {"periodic": True},
    "ap_waits": {"enable": False, "started": False},
    "migration": {"enable": False, "started": False, "auto_enable": True, "past": True},
}
#: Where the timer's interrupt is over, and has left its work to the vCPU
EXPIRED = ("simp_again", "memslot_moves", "dirty_log", "no_lapic")
AUTO_EOI = ("auto_eoi", "no_eom", "two_timers", "two_sints")
HOLDS_A = ("eoi_first", "eoi_last", "auto_eoi", "no_eom", "full", "crash", "two_timers", "two_sints", "simp_again")


def build(vm: Any, setup: str) -> None:
    """vCPUs with a SynIC, one timer or two for each, and perhaps another thread that touches their pages or what these are in.

    All vCPUs but the last have a SynIC.  The last one is the neighbour, where the set-up is about one.
    """
    for i in range(vm.size - 1):
        add_vcpu(vm, setup, i)
    if setup in OTHERS:
        name, body, private = OTHERS[setup]
        if setup == "dirty_log":
            private = {copy_of(i): (HVMSG_NONE, 0, "") for i in range(vm.size - 1)}
        Thread(vm, name or f"vcpu{vm.size - 1}", body, **private)


def add_vcpu(vm: Any, setup: str, i: int) -> None:
    """A vCPU with its SynIC and its timers."""
    register = VECTOR | (SINT_AUTO_EOI if setup in AUTO_EOI else SINT_MASKED if setup == "masked" else 0)
    sints = {SINT: register, LAST_SINT: register} if setup == "two_sints" else {SINT: register}
    synic = Synic(vm, f"synic{i}", sints, dirty_log=setup == "dirty_log")
    vcpu = HvVcpu(vm, i, synic, (VECTOR, BAD_VECTOR) if setup == "bad_vector" else (VECTOR,))
    vcpu.lapic_in_kernel = setup != "no_lapic"
    vcpu.handler = taker(vcpu, *HANDLERS.get(setup, ("take", "eoi")))
    vcpu.main = before_idle(vcpu, *MAIN[setup]) if setup in MAIN else computing
    synic.simp.init = setup != "simp_late"
    HrTimer(vm, f"timer{i}", vcpu, SINT, "B", **TIMERS.get(setup, {}))
    if setup in ("two_timers", "two_sints"):
        HrTimer(vm, f"timer{i + vm.size - 1}", vcpu, SINT if setup == "two_timers" else LAST_SINT, "C", owes=True)
    if setup in EXPIRED:
        vcpu.stimers[0].state_word.init = 0
        vcpu.stimer_pending_bitmap.init = 1
        vcpu.requests.init = 1 << KVM_REQ_HV_STIMER
    for slot, message in zip(slots_in_use(vcpu), ("A1", "D1") if setup in HOLDS_A else (), strict=False):
        slot.payload.init = message
        slot.type.init = HVMSG_UNMAPPED_GPA if setup == "auto_eoi" else HVMSG_TIMER_EXPIRED
        slot.flags.init = MSG_PENDING if setup in ("two_timers", "two_sints") else 0
        if setup not in ("crash", "simp_again"):
            vcpu.apic.irr[VECTOR >> 5].init = 1 << (VECTOR & 31)
            vcpu.apic.irr_pending.init = True
            vcpu.requests.init = 1 << KVM_REQ_EVENT
    if setup in ("page_walk", "page_poll", "page_read", "eoi_first"):
        vcpu.empty_slot = guest_cmpxchg_slot
    elif setup == "no_eom":
        vcpu.signal_eom = never_looks
    elif setup == "ap_waits":
        vcpu.prologue, vcpu.uninitialized = zero_config, True
    elif setup == "migration":
        vcpu.prologue = restore_timer


def slots_in_use(vcpu: HvVcpu) -> list[Slot]:
    """The slots that timers are bound to."""
    return [vcpu.synic.slots[sint] for sint in sorted({timer.sint for timer in vcpu.stimers})]
