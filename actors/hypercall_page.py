"""Before 7aa81cc04781: the guest registers a page by an MSR, and KVM writes the host's hypercall instruction into it, once.

Each vCPU registers for itself, a struct kvm_vcpu_para_state that names a hypercall page.  No lock is held: not against a vCPU
that executes the page meanwhile, not against userspace that takes the slot away, not against the dirty log.
[drivers/kvm/kvm_main.c, the parent of 7aa81cc04781]
"""

from __future__ import annotations

from typing import Any

from actors.actor import Actor, Cell
from actors.hypercall import (
    A0,
    EINVAL_OLD,
    KVM_EXIT_HYPERCALL,
    LOW32,
    NATIVE,
    NR,
    PARA_PAGE,
    RET,
    X86EMUL_CONTINUE,
    HypercallVcpu,
    copy_to_guest,
    gfn_to_page,
)
from actors.ops import READ_ONCE, WRITE_ONCE, choose

PAGE_SIZE = 4096
#: guest-physical addresses: a vCPU's para_state, the hypercall pages, and one without memory
PARA, HYPERCALL, NOWHERE = 0x1000, 0x2000, 0x8000_0000
KVM_PARA_API_VERSION = 1
NOT_YET = 1  # what the guest has in `ret` before it registers

#: what a guest may register: (value of the MSR, guest_version, hypercall_gpa)
CASES = (
    (PARA, 1, HYPERCALL),
    (PARA + 8, 1, HYPERCALL),
    (NOWHERE, 1, HYPERCALL),
    (PARA, 2, HYPERCALL),
    (PARA, 1, NOWHERE),
)
CASE_NAMES = ("a page that is there", "an address that is not aligned", "an address without memory", "version 2", "no page")


class ParaState(Actor):
    """struct kvm_vcpu_para_state, in a page of the guest's."""

    def __init__(self, vm: Any, name: str, hypercall_gpa: int) -> None:
        super().__init__(vm, name)
        self.guest_version = self.cell("guest_version", 1)
        self.host_version = self.cell("host_version", 0)
        self.ret = self.cell("ret", NOT_YET)
        self.hypercall_gpa = self.cell("hypercall_gpa", hypercall_gpa)

    def value_name(self, cell: Cell, value: Any) -> str:
        """Addresses in hex."""
        return f"{value:#x}" if cell is self.hypercall_gpa else str(value)


class OldGuest:
    """What a guest of the old ABI has for one vCPU: its para_state, and a pointer to the page if CPUs share it."""

    def __init__(self, para: ParaState, pointer: Cell | None = None, *, chooses: bool = False) -> None:
        self.para = para
        self.pointer = pointer
        self.chooses = chooses


async def guest_registers(vcpu: Any) -> None:
    """The guest's boot code: WRMSR 0x87655678, unless another CPU has said already which page is to be called."""
    guest: OldGuest = vcpu.old_guest
    para, pointer = guest.para, guest.pointer
    msr = PARA
    if guest.chooses:
        vcpu.chosen = await choose(len(CASES))
        msr, version, gpa = CASES[vcpu.chosen]
        await WRITE_ONCE(para.guest_version, version)
        await WRITE_ONCE(para.hypercall_gpa, gpa)
    if vcpu.registers and (pointer is None or await READ_ONCE(pointer) == "NULL"):
        if await vcpu.vm.calls.vcpu_register_para(vcpu, msr):
            vcpu.fault = "#GP"  # kvm_set_msr_common() returned 1
        elif await READ_ONCE(para.ret):
            vcpu.rip = vcpu.end  # no hypercalls for this guest
        elif pointer is not None:
            await WRITE_ONCE(pointer, hex(para.hypercall_gpa.init))
    if pointer is not None:
        vcpu.site = (int(await READ_ONCE(pointer), 16) - HYPERCALL) // PAGE_SIZE * 4


async def gpa_to_hpa(vcpu: HypercallVcpu, gpa: int) -> bool:
    """Is there memory at this address?  [mmu.c gpa_to_hpa]"""
    return gpa != NOWHERE and await gfn_to_page(vcpu.kvm)


async def vcpu_register_para(vcpu: Any, para_state_gpa: int) -> int:
    """1 for #GP; what is wrong with the structure itself is told in its `ret`.  [kvm_main.c]"""
    para: ParaState = vcpu.old_guest.para
    if para_state_gpa % PAGE_SIZE:
        return 1
    if not await gpa_to_hpa(vcpu, para_state_gpa):
        return 1
    await vcpu.vm.calls.mark_page_dirty(vcpu, PARA_PAGE)
    await WRITE_ONCE(para.host_version, KVM_PARA_API_VERSION)
    if await READ_ONCE(para.guest_version) > KVM_PARA_API_VERSION:
        await WRITE_ONCE(para.ret, -EINVAL_OLD)
        return 0
    hypercall_gpa = await READ_ONCE(para.hypercall_gpa)
    if not await gpa_to_hpa(vcpu, hypercall_gpa):
        await WRITE_ONCE(para.ret, -EINVAL_OLD)
        return 0
    await enter_para(vcpu, para, hypercall_gpa)
    return 0


async def enter_para(vcpu: Any, para: ParaState, hypercall_gpa: int) -> None:
    """The rest of vcpu_register_para(): the host-side state, and `vmcall; ret` through the kernel's own mapping."""
    vcpu.hypercall_gpa = hypercall_gpa  # nothing reads it, or para_state_page, ever again
    await vcpu.vm.calls.mark_page_dirty(vcpu)
    await copy_to_guest(vcpu, (hypercall_gpa - HYPERCALL) // PAGE_SIZE * 4, (*NATIVE[vcpu.host], RET))
    await WRITE_ONCE(para.ret, 0)


async def ud_goes_to_the_guest(vcpu: HypercallVcpu) -> bool:
    """Only #PF is intercepted.  [vmx.c update_exception_bitmap, svm.c init_vmcb]"""
    vcpu.fault = "#UD"
    return False


async def em_hypercall_nop(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """The emulator steps over either instruction.  [x86_emulate.c; 2.6.23 does not know them yet]"""
    vcpu.rip += length
    return X86EMUL_CONTINUE


async def handle_vmcall_before(vcpu: HypercallVcpu) -> int:
    """A number that KVM does not know goes to userspace, with ret = -EINVAL; exit_reason stays as it was.  [kvm_hypercall()]

    KVM_EXIT_HYPERCALL is compared with in KVM_RUN, and set nowhere: neither in 2.6.22 and 2.6.23 nor here.
    """
    if vcpu.long_mode:
        vcpu.inputs = (vcpu.rax, vcpu.rdi)
    else:
        vcpu.inputs = (vcpu.rbx & LOW32, vcpu.rax & LOW32)
    return 0


async def handle_vmcall_documented(vcpu: HypercallVcpu) -> int:
    """The same with the exit reason that include/linux/kvm.h documents."""
    vcpu.exit_reason = KVM_EXIT_HYPERCALL
    return await handle_vmcall_before(vcpu)


async def register_para_locked(vcpu: Any, para_state_gpa: int) -> int:
    """vcpu_register_para() with kvm->lock held."""
    async with vcpu.kvm.lock.held_by(vcpu):
        return await vcpu_register_para(vcpu, para_state_gpa)


async def register_para_unchecked(vcpu: Any, para_state_gpa: int) -> int:
    """vcpu_register_para() without any of its checks."""
    para: ParaState = vcpu.old_guest.para
    await vcpu.vm.calls.mark_page_dirty(vcpu, PARA_PAGE)
    await WRITE_ONCE(para.host_version, KVM_PARA_API_VERSION)
    await enter_para(vcpu, para, await READ_ONCE(para.hypercall_gpa))
    return 0


def expected(vcpu: HypercallVcpu) -> tuple[str, int, int, int, int]:
    """What the ABI says of the case that the guest chose: (fault, host_version, ret, hypercall_gpa in the host, dirty pages)."""
    msr, version, gpa = CASES[vcpu.chosen]
    if msr % PAGE_SIZE or msr == NOWHERE:
        return "#GP", 0, NOT_YET, 0, 0
    if version > KVM_PARA_API_VERSION or gpa == NOWHERE:
        return "", 1, -EINVAL_OLD, 0, 0b10
    return "", 1, 0, gpa, 0b11


def call_of(vcpu: HypercallVcpu) -> tuple[int, int]:
    """(number, argument) of the hypercall that the guest means, whichever its ABI."""
    mask = -1 if vcpu.code64 else LOW32
    return NR & mask, A0 & mask
