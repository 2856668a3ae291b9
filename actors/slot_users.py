"""Rarer readers of memory slots: real mode's TSS, the dirty bitmap's writers, and the first and the last user of a VM.

A VM's birth and death are here as far as slots and their locks go.  eda2beda8356 put kvm_mmu_notifier_release() into a read
section.  It quieted lockdep and nothing else: release runs when the last user of the mm is gone, and who changes slots is one.
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor
from actors.memslots import Memslots, Oops, Task, Updater, gfn_to_hva, kvm_set_memory_region, region, slot_of
from actors.ops import (
    READ_ONCE,
    WRITE_ONCE,
    atomic_fetch_add,
    await_masked,
    smp_store_release,
)
from actors.slot_readers import VcpuTask, kvm_arch_flush_shadow, mark_page_dirty
from actors.srcu import srcu_read_lock, srcu_read_unlock

# ---- real mode: where is the TSS?  Three pages below the end of slot 0, if userspace did not say


async def rmode_tss_base_twice(kvm: Memslots) -> int:
    """Two loads of the pointer: base and size may come from two arrays.  [vmx.c, 2.6.34, which ignores its rcu_dereference()]"""
    await READ_ONCE(kvm.memslots)  # slots = rcu_dereference(kvm->memslots), which nobody looks at
    base_gfn = (await slot_of(kvm, await READ_ONCE(kvm.memslots), 0)).base_gfn
    npages = (await slot_of(kvm, await READ_ONCE(kvm.memslots), 0)).npages
    return base_gfn + npages - 3


async def rmode_tss_base(kvm: Memslots) -> int:
    """One load of the pointer.  [vmx.c, 3.8]"""
    slot = await slot_of(kvm, await READ_ONCE(kvm.memslots), 0)
    return slot.base_gfn + slot.npages - 3


async def enter_rmode(vcpu: VcpuTask) -> str:
    """The guest leaves protected mode.  [vmx.c enter_rmode, 2.6.34]"""
    calls = vcpu.vm.calls
    idx = await calls.vcpu_read_lock(vcpu)
    gfn = await calls.rmode_tss_base(vcpu.kvm)
    await calls.vcpu_read_unlock(vcpu, idx)
    return f"TSS at gfn {gfn}"


async def moves_memory(me: Updater) -> str:
    """Slot 0 has another size and place: userspace deletes it, and makes it anew."""
    calls = me.vm.calls
    await calls.kvm_set_memory_region(me, region(0, 0, 0))
    me.r = await calls.kvm_set_memory_region(me, region(0, 8, 3))
    return f"r = {me.r}"


# ---- KVM itself writes to the guest: the page is marked without mmu_lock


async def kvm_write_guest_page(vcpu: VcpuTask, gfn: int) -> str:
    """Copy, then mark.  [kvm_main.c, 2.6.34]"""
    if await gfn_to_hva(vcpu.kvm, gfn) is None:
        return "bad address"
    await mark_page_dirty(vcpu.kvm, gfn)
    return f"wrote gfn {gfn}"


async def writes_guest(vcpu: VcpuTask) -> str:
    """An exit in which KVM writes to a frame: each vCPU to its own."""
    calls = vcpu.vm.calls
    idx = await calls.vcpu_read_lock(vcpu)
    end = await kvm_write_guest_page(vcpu, vcpu.bit.bit_length() - 1)
    await calls.vcpu_read_unlock(vcpu, idx)
    return end


# ---- the first use of a VM


class Birth(Actor):
    """A VM that is being made.  `mmu_lock` is a ticket lock, as on x86 then: who is served, and the next ticket."""

    def __init__(self, vm: Any, name: str) -> None:
        super().__init__(vm, name)
        self.registered = self.cell("notifier", 0)
        self.mmu_lock = self.cell("mmu_lock", 0)  # kzalloc(): an unlocked ticket lock, as it happens

    def value_name(self, cell: Any, value: Any) -> str:
        """A ticket lock in words."""
        if cell is self.registered:
            return "registered" if value else "none"
        return f"{value >> 8} tickets, {value & 0xFF} done"


async def __ticket_spin_lock(lock: Any) -> None:
    """Draw a ticket, wait until it is its turn.  [arch/x86/include/asm/spinlock.h, 2.6.34]"""
    ticket: int = await atomic_fetch_add(1 << 8, lock) >> 8
    await await_masked(lock, 0xFF, ticket)


async def __ticket_spin_unlock(lock: Any) -> None:
    """The next one's turn: incb of the low byte, which no drawing of tickets touches.  [spinlock.h]"""
    await atomic_fetch_add(1, lock)


async def kvm_create_vm_notifier_first(birth: Birth) -> None:
    """The notifier first, then the lock that it takes.  [kvm_main.c kvm_create_vm, 2.6.34]"""
    await smp_store_release(birth.registered, 1)  # kvm_init_mmu_notifier()
    await WRITE_ONCE(birth.mmu_lock, 0)  # spin_lock_init()


async def kvm_create_vm(birth: Birth) -> None:
    """What notifiers take is there before they come.  [kvm_main.c, 3.8]"""
    await WRITE_ONCE(birth.mmu_lock, 0)
    await smp_store_release(birth.registered, 1)


async def creates_vm(me: Task) -> str:
    """KVM_CREATE_VM, and the first KVM_SET_USER_MEMORY_REGION, as far as mmu_lock goes."""
    birth: Birth = me.vm.by_name["kvm"]
    await me.vm.calls.kvm_create_vm(birth)
    await __ticket_spin_lock(birth.mmu_lock)
    await __ticket_spin_unlock(birth.mmu_lock)
    return "has a VM"


async def reclaims_early(me: Task) -> str:
    """Some page of the VMM is reclaimed: who is registered is told, finds no slot, and held mmu_lock meanwhile."""
    birth: Birth = me.vm.by_name["kvm"]
    if not await READ_ONCE(birth.registered):
        return "not told"
    await __ticket_spin_lock(birth.mmu_lock)
    await __ticket_spin_unlock(birth.mmu_lock)
    return "told"


# ---- the last use of a VM


class Death(Actor):
    """The VMM's process: how many threads use its memory still, and whether kvm->srcu has been cleaned up."""

    def __init__(self, vm: Any, name: str, users: int) -> None:
        super().__init__(vm, name)
        self.mm_users = self.cell("mm_users", users)
        self.per_cpu_ref = self.cell("srcu.per_cpu_ref", "allocated")


async def mmput(me: Task) -> bool:
    """One user less; was it the last one?  Only then is the mm torn down.  [kernel/fork.c]"""
    death: Death = me.vm.by_name["mm"]
    users: int = await atomic_fetch_add(-1, death.mm_users)
    return users == 1


async def kvm_mmu_notifier_release(me: Updater) -> None:
    """The mm goes, so all mappings go.  [kvm_main.c, 2.6.34]"""
    idx = await srcu_read_lock(me, me.kvm.srcu)
    await kvm_arch_flush_shadow(me)
    await srcu_read_unlock(me, me.kvm.srcu, idx)


async def release_without_srcu(me: Updater) -> None:
    """The same, outside of a read section.  [kvm_main.c, before eda2beda8356]"""
    await kvm_arch_flush_shadow(me)


async def cleanup_srcu_struct(death: Death) -> None:
    """[kernel/srcu.c]"""
    await WRITE_ONCE(death.per_cpu_ref, "")


async def kvm_arch_vcpu_uninit(me: Updater) -> None:
    """Free a vCPU; its roots go in a read section.  [x86.c, 2.6.34]"""
    death: Death = me.vm.by_name["mm"]
    if not await READ_ONCE(death.per_cpu_ref):
        raise Oops("M-I1: srcu_read_lock() after cleanup_srcu_struct()")
    idx = await srcu_read_lock(me, me.kvm.srcu)
    await srcu_read_unlock(me, me.kvm.srcu, idx)


async def kvm_destroy_vm(me: Updater) -> None:
    """vCPUs first, then SRCU.  [kvm_main.c kvm_destroy_vm, x86.c kvm_arch_destroy_vm, 2.6.34: 647492047763]"""
    await kvm_arch_vcpu_uninit(me)
    await cleanup_srcu_struct(me.vm.by_name["mm"])


async def kvm_destroy_vm_srcu_first(me: Updater) -> None:
    """SRCU first: vCPUs that go away still read.  [kvm_main.c kvm_destroy_vm, bc6678a33d9b]"""
    await cleanup_srcu_struct(me.vm.by_name["mm"])
    await kvm_arch_vcpu_uninit(me)


async def exits(me: Updater) -> str:
    """A thread of the VMM exits; the last one takes the mm, and then the VM, along.  [kernel/exit.c exit_mm, exit_files]"""
    calls = me.vm.calls
    if not await calls.mmput(me):
        return "exits"
    await calls.kvm_mmu_notifier_release(me)
    await calls.kvm_destroy_vm(me)
    return "exits, the VM with it"


async def deletes_and_exits(me: Updater) -> str:
    """KVM_SET_USER_MEMORY_REGION is under way while another thread of the VMM exits."""
    me.r = await kvm_set_memory_region(me, region(0, 0, 0))
    return await exits(me)


#: what a scenario may replace
FUNCTIONS = {
    f.__name__: f
    for f in (
        kvm_create_vm,
        kvm_destroy_vm,
        kvm_mmu_notifier_release,
        mmput,
        rmode_tss_base,
    )
}
