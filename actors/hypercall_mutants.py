"""Hypercall patching as it must not be: each function has one mistake, which its docstring names."""

from __future__ import annotations

from actors.hypercall import (
    EFAULT,
    KVM_TLB_FLUSH,
    LOW32,
    TEXT_PAGE,
    X86EMUL_CONTINUE,
    HypercallVcpu,
    call_others,
    handle_ud,
    kvm_emulate_hypercall,
    page_fault,
    request_flush,
    write_hypercall,
)
from actors.ops import test_and_set_bit


async def m3_write_first(vcpu: HypercallVcpu) -> int:
    """kvm_fix_hypercall(): the write before the zap."""
    async with vcpu.kvm.lock.held_by(vcpu):
        rc = await write_hypercall(vcpu)
        await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
    return rc


async def m4_no_wait(vcpu: HypercallVcpu) -> None:
    """kvm_flush_remote_tlbs(): IPIs are sent, nobody waits for them."""
    await call_others(vcpu, await request_flush(vcpu))


async def ipi_first(vcpu: HypercallVcpu) -> None:
    """kvm_flush_remote_tlbs(): a vCPU that enters again between IPI and request keeps its TLB."""
    others = [other for other in vcpu.vm.vcpus if other is not vcpu]
    await call_others(vcpu, others)
    for other in vcpu.vm.vcpus:
        await test_and_set_bit(KVM_TLB_FLUSH, other.requests)
    for other in others:
        await other.pcpu.wait_for_call(vcpu.csd)


async def m5_unlocked_write(vcpu: HypercallVcpu) -> int:
    """kvm_fix_hypercall(): the lock is dropped between zap and write."""
    async with vcpu.kvm.lock.held_by(vcpu):
        await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
    return await write_hypercall(vcpu)


async def m6_fault_unlocked(vcpu: HypercallVcpu) -> int:
    """kvm_mmu_page_fault() without kvm->lock."""
    await page_fault(vcpu)
    return 1


async def m9_skipped(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """em_hypercall(): patch, and RIP behind the instruction all the same."""
    rc: int = await vcpu.vm.calls.kvm_fix_hypercall(vcpu)
    vcpu.rip += length
    return rc


async def m10_ud_locks(vcpu: HypercallVcpu) -> int:
    """The #UD handler takes kvm->lock, as that of #PF does."""
    async with vcpu.kvm.lock.held_by(vcpu):
        return await handle_ud(vcpu)


async def m11_efault(vcpu: HypercallVcpu) -> int:
    """emulator_fix_hypercall() returns -EFAULT, as until 7edcface95c6, for which nothing is injected any more."""
    return -EFAULT if await write_hypercall(vcpu) != X86EMUL_CONTINUE else X86EMUL_CONTINUE


def m12_mask(vcpu: HypercallVcpu) -> int:
    """32 bits, always."""
    return LOW32


async def m13_result(vcpu: HypercallVcpu) -> int:
    """handle_vmcall() returns the 0 of kvm_emulate_hypercall()."""
    return kvm_emulate_hypercall(vcpu)


async def emulated_only(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """em_hypercall(): run it, leave the instruction as it is."""
    kvm_emulate_hypercall(vcpu)
    vcpu.rip += length
    return X86EMUL_CONTINUE


async def not_dirty(vcpu: HypercallVcpu, gfn: int = TEXT_PAGE) -> None:
    """mark_page_dirty() is forgotten."""
