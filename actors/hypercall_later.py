"""What became of hypercall patching after 7aa81cc04781: each function as of the kernel named in its docstring."""

from __future__ import annotations

from actors.hypercall import (
    EFAULT,
    EMULATE_DONE,
    EMULATE_FAIL,
    KVM_ENOSYS,
    KVM_EPERM,
    LOW32,
    X86EMUL_CONTINUE,
    X86EMUL_PROPAGATE_FAULT,
    X86EMUL_UNHANDLEABLE,
    Code,
    HypercallVcpu,
    copy_to_guest,
    em_hypercall,
    emulator_fetch,
    hypercall_result,
    page_fault,
    write_hypercall,
    x86_emulate_insn,
)
from actors.ops import WRITE_ONCE


# ---- the emulator
async def em_hypercall_2_6_26(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """The CPU re-executes a patched vmcall; vmmcall as before.  [x86_emulate.c, 33e3885de251]"""
    if name == "vmcall":
        return await em_hypercall_today(vcpu, name, length)
    return await em_hypercall(vcpu, name, length)


async def em_hypercall_2_6_30(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """RIP is set back in the vmcall case only.  [x86_emulate.c, 2.6.30; em_vmcall() and em_vmmcall() of emulate.c, 3.18]"""
    rc: int = await vcpu.vm.calls.kvm_fix_hypercall(vcpu)
    if rc == X86EMUL_CONTINUE and name == "vmmcall":
        vcpu.rip += length
    return rc


async def em_hypercall_today(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """Patch and let the processor re-execute.  [emulate.c em_hypercall, 6.16]"""
    rc: int = await vcpu.vm.calls.kvm_fix_hypercall(vcpu)
    return rc


async def emulate_instruction_trap_ud(vcpu: HypercallVcpu, trap_ud: bool) -> int:
    """EMULTYPE_TRAP_UD: nothing but a hypercall is emulated because of a #UD.  [x86.c, 571008daccc1]"""
    name, length = await emulator_fetch(vcpu, trap_ud)
    if trap_ud and name not in ("vmcall", "vmmcall", "#PF"):
        return EMULATE_FAIL
    rc = await x86_emulate_insn(vcpu, name, length)
    return EMULATE_FAIL if rc == X86EMUL_UNHANDLEABLE else EMULATE_DONE


async def emulate_instruction_3_11(vcpu: HypercallVcpu, trap_ud: bool) -> int:
    """X86EMUL_PROPAGATE_FAULT injects what is in ctxt->exception: #DE if nobody set it.  [x86.c x86_emulate_instruction, 3.10]"""
    name, length = await emulator_fetch(vcpu, trap_ud)
    vcpu.exception = "#PF" if name == "#PF" else vcpu.exception
    if trap_ud and name not in ("vmcall", "vmmcall", "#PF"):
        return EMULATE_FAIL
    rc = await x86_emulate_insn(vcpu, name, length)
    if rc == X86EMUL_PROPAGATE_FAULT:
        vcpu.fault = vcpu.exception
    return EMULATE_FAIL if rc == X86EMUL_UNHANDLEABLE else EMULATE_DONE


# ---- locks, zap and write
async def kvm_mmu_zap_all_2_6_25(vcpu: HypercallVcpu) -> None:
    """mmu_lock is held for the zap, and the flush is after it.  [mmu.c, 2.6.25]"""
    vcpu.zaps = min(vcpu.zaps + 1, 2)
    async with vcpu.kvm.mmu_lock.held_by(vcpu):
        await WRITE_ONCE(vcpu.kvm.spte, False)
    await vcpu.vm.calls.kvm_flush_remote_tlbs(vcpu)


async def fix_hypercall_2_6_25(vcpu: HypercallVcpu) -> int:
    """No lock is held from the zap to the write: what kept others from mapping the page again is gone.  [x86.c, 2.6.25]"""
    await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
    return -EFAULT if await write_hypercall(vcpu) != X86EMUL_CONTINUE else X86EMUL_CONTINUE


async def fix_hypercall_2_6_34(vcpu: HypercallVcpu) -> int:
    """X86EMUL_* and not -EFAULT is returned.  [x86.c, 7edcface95c6]"""
    await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
    return await write_hypercall(vcpu)


async def fix_hypercall_3_11(vcpu: HypercallVcpu) -> int:
    """No zap any more.  [x86.c emulator_fix_hypercall, 3.18 and 6.16; 3.10.4 still has it]"""
    return await write_hypercall(vcpu)


async def fix_hypercall_quirk_off(vcpu: HypercallVcpu) -> int:
    """KVM_X86_QUIRK_FIX_HYPERCALL_INSN is disabled: the guest gets its #UD.  [x86.c emulator_fix_hypercall, 6.16]"""
    vcpu.exception = "#UD"
    return X86EMUL_PROPAGATE_FAULT


async def page_fault_2_6_25(vcpu: HypercallVcpu) -> int:
    """Emulation is outside of mmu_lock, and its failure is a line in the log.  [mmu.c kvm_mmu_page_fault, 2.6.25]"""
    if vcpu.tlb:
        await page_fault(vcpu)
    else:
        async with vcpu.kvm.mmu_lock.held_by(vcpu):
            await page_fault(vcpu)
    return 1


async def write_emulated_2_6_25(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """Dirty after the copy, with slots_lock held for reading.  [kvm_main.c kvm_write_guest_page, 2.6.25]"""
    rc = await copy_to_guest(vcpu, address, code)
    await vcpu.vm.calls.mark_page_dirty(vcpu)
    return rc


async def write_emulated_3_11(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """The guest's page tables are asked; but emulator_fix_hypercall() passes NULL for the exception.  [x86.c, 3.8 to 3.18]"""
    if not vcpu.kvm.writable:
        return X86EMUL_PROPAGATE_FAULT
    return await write_emulated_2_6_25(vcpu, address, code)


async def write_emulated_today(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """It passes &ctxt->exception.  [x86.c emulator_fix_hypercall, 6.16]"""
    vcpu.exception = "#PF"
    return await write_emulated_3_11(vcpu, address, code)


# ---- the hypercall itself
def no_exit_to_complete(vcpu: HypercallVcpu) -> None:
    """Nothing of the old ABI is left in KVM_RUN.  [x86.c kvm_arch_vcpu_ioctl_run since complete_mmio()]"""


def skip_emulated_instruction_today(vcpu: HypercallVcpu, length: int) -> None:
    """SVM is told where the next instruction begins, or has its emulator look.  [svm.c __svm_skip_emulated_instruction, 6.16]"""
    vcpu.rip += length


def hypercall_mask_today(vcpu: HypercallVcpu) -> int:
    """is_64_bit_mode(): the code segment decides.  [x86.c kvm_emulate_hypercall, 3.18]"""
    return -1 if vcpu.code64 else LOW32


def hypercall_result_today(vcpu: HypercallVcpu) -> int:
    """Ring 0 only, and 32 bits to 32-bit code.  [x86.c kvm_emulate_hypercall, 3.18]"""
    result = -KVM_EPERM if vcpu.cpl else -KVM_ENOSYS
    return result if vcpu.code64 else result & LOW32


def hypercall_result_cpl(vcpu: HypercallVcpu) -> int:
    """[x86.c kvm_emulate_hypercall, 07708c4af134]"""
    return -KVM_EPERM if vcpu.cpl else hypercall_result(vcpu)
