"""What guests and userspace do in the races about SynIC messages: handlers, main programs, other vCPUs that touch the page.

Guest code runs on the vCPU's own thread between VM entry and VM exit; what stands for another vCPU or for userspace is a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.guest import GuestCpu, GuestProgram, Insn
from actors.hrtimer import stimer_set_config, stimer_set_count
from actors.hv_vcpu import HvVcpu
from actors.ops import READ_ONCE, WRITE_ONCE, await_bits, cmpxchg, smp_mb, xchg
from actors.synic import HVMSG_NONE, LAST_SINT, MSG_PENDING, SINT, VECTOR

UNSEEN = "unseen"  # a message that was taken without a look at its payload
BAD_VECTOR = 5  # no vector of an interrupt: 0 to 15 are exceptions' own


#: The guest's writes to registers, by name.
REGISTERS: dict[str, Insn] = {
    "simp": Insn("simp"),
    "eoi": Insn("eoi"),
    "eom": Insn("eom"),
    "disable": Insn("scontrol", (False,)),
    "unmask": Insn("sint", (SINT, VECTOR)),
    "bad_vector": Insn("sint", (SINT, BAD_VECTOR)),
}


def taker(vcpu: HvVcpu, *steps: str) -> GuestProgram:
    """A handler of these steps: "take" (the slot's message, if there is one), "take_last" (of slot 15), or a register write."""

    async def handler(cpu: GuestCpu) -> None:
        for step in steps:
            await guest_step(cpu, vcpu, step)

    return handler


def before_idle(vcpu: HvVcpu, *steps: str) -> GuestProgram:
    """The steps, then HLT for ever."""

    async def main(cpu: GuestCpu) -> None:
        for step in steps:
            await guest_step(cpu, vcpu, step)
        while True:
            cpu.here("idle")
            await cpu.hlt()

    return main


async def guest_step(cpu: GuestCpu, vcpu: HvVcpu, step: str) -> None:
    """One step of a handler or of a main program."""
    if step == "take":
        await take_message(cpu, vcpu, SINT)
    elif step == "take_last":
        await take_message(cpu, vcpu, LAST_SINT)
    else:
        await REGISTERS[step]


async def take_message(cpu: GuestCpu, vcpu: HvVcpu, sint: int) -> None:
    """Copy the message out and empty the slot.  [Linux vmbus_on_msg_dpc; kvm-unit-tests hyperv_stimer.c process_stimer_msg]"""
    slot = vcpu.synic.slots[sint]
    seen = await cpu.load(slot.type)
    if seen == HVMSG_NONE:
        return
    payload = await cpu.load(slot.payload)
    if await vcpu.empty_slot(cpu, slot, seen):
        vcpu.taken = (*vcpu.taken, payload)
        await vcpu.signal_eom(cpu, slot)


async def guest_empty_slot(cpu: GuestCpu, slot: Any, seen: int) -> bool:
    """A plain store and a full barrier, for a page that only one CPU touches.  [hyperv_stimer.c process_stimer_msg]"""
    await cpu.store(slot.type, HVMSG_NONE)
    await cpu.mfence()  # the slot is empty before the pending bit is read
    return True


async def guest_cmpxchg_slot(cpu: GuestCpu, slot: Any, seen: int) -> bool:
    """By cmpxchg, for another CPU may have emptied it.  [Linux drivers/hv vmbus_signal_eom]"""
    if await Insn("memory", op=cmpxchg(slot.type, seen, HVMSG_NONE)) != seen:
        return False
    await cpu.mfence()
    return True


async def guest_signal_eom(cpu: GuestCpu, slot: Any) -> None:
    """EOM, if the slot says that more is waiting."""
    if await cpu.load(slot.flags) & MSG_PENDING:
        await Insn("eom")


async def never_looks(cpu: GuestCpu, slot: Any) -> None:
    """A guest that breaks the protocol."""


async def asks_on(cpu: GuestCpu, slot: Any) -> None:
    """A guest that writes EOM until the pending bit is clear, four times at most; the protocol wants one, and a new message."""
    for _ in range(4):
        if not await cpu.load(slot.flags) & MSG_PENDING:
            return
        await Insn("eom")


async def computing(cpu: GuestCpu) -> None:
    """Runs for ever; only an interrupt is seen."""
    cpu.here("computing")
    await cpu.compute()


# ---- another vCPU and userspace, which go from page to page if there are several: for_each_present_cpu()


def from_page(vcpu: HvVcpu, message: str) -> str:
    """How another vCPU remembers a message: with the number of the page that it was in, but for the first page."""
    return message if vcpu.id == 0 else f"{vcpu.id}:{message}"


async def walk_page(me: Any) -> None:
    """A neighbour empties slots if there is something in them, whatever it is."""
    for vcpu in me.vm.vcpus:
        await empty_slot_of(me, vcpu, await READ_ONCE(vcpu.synic.slots[SINT].type), read=False)


async def poll_page(me: Any) -> None:
    """The same, once there is something in the first page: the neighbour polls."""
    await poll_pages(me, read=False)


async def read_page(me: Any) -> None:
    """The neighbour polls too, and copies the payload before it empties a slot."""
    await poll_pages(me, read=True)


async def poll_pages(me: Any, *, read: bool) -> None:
    """Wait for a message in the first page; then look once into each other one."""
    first, *others = me.vm.vcpus
    await empty_slot_of(me, first, await await_bits(first.synic.slots[SINT].type, -1), read=read)
    for vcpu in others:
        await empty_slot_of(me, vcpu, await READ_ONCE(vcpu.synic.slots[SINT].type), read=read)


async def empty_slot_of(me: Any, vcpu: HvVcpu, seen: int, *, read: bool) -> bool:
    """Empty the slot that held a message of type `seen`; whether that was done, and was needed."""
    slot = vcpu.synic.slots[SINT]
    if seen == HVMSG_NONE:
        return False
    payload = await READ_ONCE(slot.payload) if read else UNSEEN
    if await cmpxchg(slot.type, seen, HVMSG_NONE) != seen:
        return False
    me.taken = (*me.taken, from_page(vcpu, payload))
    return True


async def read_and_eom(me: Any) -> None:
    """Read the others' pages, twice; EOM goes to the own SynIC, where nothing is owed.  [Linux vmbus_wait_for_unload]"""
    for _ in range(2):
        for vcpu in me.vm.vcpus:
            slot = vcpu.synic.slots[SINT]
            if await empty_slot_of(me, vcpu, await READ_ONCE(slot.type), read=True):
                await smp_mb()
                if await READ_ONCE(slot.flags) & MSG_PENDING:
                    me.eoms += 1  # 16 sources of its own, none of which owes anything: not a single step
                    me.note("kvm_msr", vcpu=len(me.vm.vcpus), reason="EOM")


async def move_memslot(me: Any) -> None:
    """Userspace moves the memory that a message page is in: gone, then there again.  [KVM_SET_USER_MEMORY_REGION, twice]"""
    for vcpu in me.vm.vcpus:
        await WRITE_ONCE(vcpu.synic.memslot, False)
        await xchg(vcpu.synic.memslot, True)  # rcu_assign_pointer() and synchronize_srcu(): a full barrier
        await me.vm.calls.memslot_is_back(me, vcpu)


async def memslot_is_back(me: Any, vcpu: HvVcpu) -> None:
    """What KVM does for the SynIC when the memslots have changed: nothing."""


def copy_of(vcpu_id: int) -> str:
    """The name of userspace's copy of a page."""
    return f"copied{vcpu_id or ''}"


async def log_dirty(me: Any) -> None:
    """A round of pre-copy: take a dirty bit, and if it was set copy the page.  [KVM_GET_DIRTY_LOG, then plain loads]"""
    for vcpu in me.vm.vcpus:
        if await xchg(vcpu.synic.dirty, 0):
            slot = vcpu.synic.slots[SINT]
            copy = (await READ_ONCE(slot.type), await READ_ONCE(slot.flags), await READ_ONCE(slot.payload))
            setattr(me, copy_of(vcpu.id), copy)


async def zero_config(vcpu: HvVcpu) -> None:
    """Userspace zeroes the registers of a new vCPU, as QEMU does.  [MSR writes on the vCPU's thread]"""
    await stimer_set_config(vcpu, vcpu.stimers[0], False)


async def restore_timer(vcpu: HvVcpu) -> None:
    """Userspace restores a timer that has fired: CONFIG with auto-enable set and enable clear, then COUNT."""
    await stimer_set_config(vcpu, vcpu.stimers[0], False)
    await stimer_set_count(vcpu, vcpu.stimers[0], 1, True)


FUNCTIONS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (guest_empty_slot, guest_signal_eom, memslot_is_back)}
