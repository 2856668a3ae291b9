"""Hypercalls: the instruction bytes in guest memory, the CPU that fetches them, and KVM's patching of them.

vmcall (Intel) is 0f 01 c1 and vmmcall (AMD) is 0f 01 d9; the wrong one for the host's CPU raises #UD.  Since 7aa81cc04781 KVM
intercepts #UD, lets its emulator decode the instruction, and writes the host's own in its place, wherever a guest executes it.

Every byte of guest text is a cell: a CPU that fetches while another one writes may see some new bytes and some old ones.  A vCPU
here is a light thread: VM entry, page walk, fetch, exit, and the exit handlers that matter to hypercalls.

This file is the code of 7aa81cc04781; what was before it is in hypercall_page.py, what came later in hypercall_later.py.
[drivers/kvm/{kvm_main,x86_emulate,mmu,vmx,svm}.c at that commit]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from actors.actor import Actor, Cell
from actors.ops import (
    CALL_QUEUED,
    IPI_PENDING,
    READ_ONCE,
    WRITE_ONCE,
    await_eq,
    send_ipi,
    set_bit,
    smp_store_release,
    test_and_clear_bit,
    test_and_set_bit,
)
from actors.pcpu import Pcpu
from actors.sync import Lock

Code = tuple[str, ...]

INTEL, AMD = "Intel", "AMD"
VMCALL: Code = ("0f", "01", "c1")
VMMCALL: Code = ("0f", "01", "d9")
NATIVE = {INTEL: VMCALL, AMD: VMMCALL}
NATIVE_NAME = {INTEL: "vmcall", AMD: "vmmcall"}
OPERAND_SIZE, LOCK_PREFIX, RET, INT3 = "66", "f0", "c3", "cc"

KVM_TLB_FLUSH = 0  # vcpu->requests, 2007
KVM_EXIT_EXCEPTION, KVM_EXIT_HYPERCALL = 1, 3
KVM_ENOSYS, KVM_EPERM, EFAULT, EINVAL_OLD = 1000, 1, 14, 1
EMULATE_DONE, EMULATE_FAIL = 0, 2
X86EMUL_CONTINUE, X86EMUL_UNHANDLEABLE, X86EMUL_PROPAGATE_FAULT = 0, 1, 2
LOW32 = 0xFFFFFFFF
#: a number that KVM does not know, and an argument of more than 32 bits
NR, A0 = 5, (1 << 32) + 7
#: guest pages, as bits of the dirty log: the text, and struct kvm_vcpu_para_state of the old ABI
TEXT_PAGE, PARA_PAGE = 0, 1
IN_USE, FREED = "in use", "freed"


def decode(code: Code) -> tuple[str, int]:
    """(mnemonic, length) of the instruction that these bytes begin with; "?" is none that this model knows."""
    skip = 1 if code[0] in (OPERAND_SIZE, LOCK_PREFIX) else 0
    rest = code[skip:]
    if rest[:3] == VMCALL:
        return "vmcall", skip + 3
    if rest[:3] == VMMCALL:
        return "vmmcall", skip + 3
    return {"89": ("mov", skip + 2), INT3: ("int3", skip + 1)}.get(rest[0], ("?", skip + 1))


class Kvm(Actor):
    """What the vCPUs of one VM share: `kvm->lock`, the shadow page table entry of the guest's text, the slot, the dirty log."""

    bit_names: ClassVar = {"dirty": {TEXT_PAGE: "text", PARA_PAGE: "para"}}

    def __init__(
        self, vm: Any, text: Code, *, host: str = INTEL, writable: bool = True, straddles: bool = False, removable: bool = False
    ) -> None:
        super().__init__(vm, "kvm")
        memory = vm.guest_memory(**{f"text{i}": byte for i, byte in enumerate(text)})
        self.text: list[Cell] = [getattr(memory, f"text{i}") for i in range(len(text))]
        self.lock_word = self.cell("lock", "")
        self.lock = Lock(self.lock_word)
        self.mmu_lock_word = self.cell("mmu_lock", "")
        self.mmu_lock = Lock(self.mmu_lock_word)  # since 2.6.25; before, kvm->lock protects the shadow page tables as well
        self.spte = self.cell("spte", True)
        self.dirty = self.cell("dirty", 0)
        self.host = self.cell("host", host)
        self.writable = writable  # the guest's own page tables; nobody changes this
        self.straddles = straddles  # the last byte is on another page, which the guest may unmap:
        self.pte = memory.cell("pte", True)
        self.pointer = memory.cell("hypercall_page", "NULL")  # of a guest of the old ABI whose CPUs share one
        self.removable = removable  # userspace may take the slot away, and with it the host's pages behind it:
        self.slot = self.cell("slot", True)
        self.pages = self.cell("pages", IN_USE)


class HypercallVcpu(Actor):
    """One vCPU thread: it executes the instruction at RIP until RIP is at `end`, `rounds` times."""

    bit_names: ClassVar = {"requests": {KVM_TLB_FLUSH: "TLB_FLUSH"}}

    def __init__(self, vm: Any, kvm: Kvm, vcpu_id: int, *, rounds: int = 1, end: int = 3, fetches: int = 3) -> None:
        super().__init__(vm, f"vcpu{vcpu_id}")
        self.id = vcpu_id
        self.kvm = kvm
        self.pcpu = Pcpu(vm, f"pcpu{vcpu_id}")
        #: of the function calls that this CPU makes on others; the 16th bit is userspace's
        self.csd = CALL_QUEUED << vcpu_id % 15
        vm.vcpus.append(self)
        self.requests = self.cell("requests", 0)
        self.stop = self.cell("stop", False)
        self.stopped = self.cell("stopped", False)
        #: what kind of code it runs, and how it makes hypercalls: all of it is the same during a run
        self.long_mode, self.code64, self.cpl, self.cs_base = True, True, 0, 0
        self.old_abi = self.registers = False
        self.old_guest: Any = None  # see hypercall_page.py
        self.up: Cell | None = None  # the guest runs this CPU only when another one has brought it up
        self.brings_up: list[Cell] = []  # when it is done itself
        self.restores = ""  # the byte that the guest puts back before each round but the first
        self.end, self.fetches = end, fetches
        self.migrates: bool
        self.returned: bool
        self.site: int
        self.rip: int
        self.rax: int
        self.rbx: int
        self.rdi: int
        self.tlb: bool
        self.host: str
        self.rounds: int
        self.fault: str
        self.exit_reason: int
        self.unexplained: bool
        self.exception: str
        self.uds: int
        self.zaps: int
        self.hypercall_gpa: int
        self.chosen: int
        self.inputs: tuple[int, ...]
        self.results: tuple[int, ...]
        self.finished: bool
        self.private(
            rip=0, site=0, rax=0, rbx=0, rdi=0, tlb=True, host=kvm.host.init, rounds=rounds, fault="", exit_reason=0,
            unexplained=False, exception="#DE", uds=0, zaps=0, hypercall_gpa=0, chosen=0, inputs=(), results=(), finished=False,
            migrates=False, returned=True,
        )  # fmt: skip

    @property
    def text(self) -> list[Cell]:
        """The cells of the bytes at CS:RIP."""
        start = self.cs_base + self.site + self.rip
        return self.kvm.text[start : start + self.fetches]

    @property
    def loaded(self) -> tuple[int, int, int]:
        """RAX, RBX, RDI at a hypercall: the old ABI has the argument in RDI, in 32-bit code in EAX with the number in EBX."""
        if self.old_abi:
            return (NR, 0, A0) if self.code64 else (A0, NR, 0)
        return NR, A0, 0

    def load_registers(self) -> None:
        """What the guest does before a hypercall."""
        self.rip = 0
        self.rax, self.rbx, self.rdi = self.loaded

    async def run(self) -> None:
        """The VMM's vCPU thread."""
        self.load_registers()
        if self.up is not None:
            await await_eq(self.up, True)
        await self.vm.calls.guest_boot(self)
        while True:
            self.checkpoint("vcpu_run")
            if self.migrates and await READ_ONCE(self.stop):
                await migrated(self)
            if self.returned:
                self.vm.calls.complete_hypercall(self)
                self.returned = False
            if self.fault == "#PF" and self.kvm.straddles:  # the guest's handler; then the instruction once more
                await await_eq(self.kvm.pte, True)
                self.fault = ""
            if self.rip >= self.end or self.fault:
                self.results = (*self.results, self.rax)
                self.rounds -= 1
                if not self.rounds or self.fault:
                    break
                self.load_registers()
                if self.restores:
                    await WRITE_ONCE(self.kvm.text[2], self.restores)
            await vcpu_enter_guest(self)
        for up in self.brings_up:
            await WRITE_ONCE(up, True)
        self.finished = True


async def migrated(vcpu: HypercallVcpu) -> None:
    """Out of KVM_RUN until the other host runs the VM: a new kvm_run, no TLB, another CPU."""
    await smp_store_release(vcpu.stopped, True)
    await await_eq(vcpu.stop, False)
    vcpu.host = await READ_ONCE(vcpu.kvm.host)
    vcpu.exit_reason, vcpu.tlb, vcpu.migrates, vcpu.returned = 0, False, False, True
    if vcpu.host != vcpu.kvm.host.init:
        vcpu.uds = 0


# ---- the CPU ------------------------------------------------------------------------------------------------------------------


async def vcpu_enter_guest(vcpu: HypercallVcpu) -> None:
    """Enter, run one instruction after the other, exit, handle the exit.  [kvm_main.c __vcpu_run, 7aa81cc04781]"""
    await vcpu.pcpu.local_irq_disable()
    if await READ_ONCE(vcpu.requests) and await test_and_clear_bit(KVM_TLB_FLUSH, vcpu.requests):
        vcpu.tlb = False
    exit_reason = "interrupt"
    if not await vcpu.pcpu.vm_enter() & IPI_PENDING:
        exit_reason = await guest(vcpu)
        await vcpu.pcpu.vm_exit()
    if await vcpu.pcpu.local_irq_enable() & IPI_PENDING:
        await vcpu.pcpu.run_queued_calls()
    vcpu.note("kvm_exit", reason=exit_reason)
    vcpu.checkpoint(f"exit {exit_reason}")  # what is alive is in the label
    handler = {"#UD": "handle_ud", "#PF": "kvm_mmu_page_fault", "hypercall": "handle_vmcall"}.get(exit_reason)
    if handler is not None and await getattr(vcpu.vm.calls, handler)(vcpu) <= 0:
        vcpu.returned = True  # KVM_RUN returns,
        vcpu.unexplained = vcpu.unexplained or not vcpu.exit_reason  # perhaps with the exit reason of some earlier time


async def guest(vcpu: HypercallVcpu) -> str:
    """In guest mode: the reason of the exit.  A fetch of `fetches` bytes, one by one; interrupts come between instructions."""
    while vcpu.rip < vcpu.end and not vcpu.fault:
        if await vcpu.pcpu.interrupt_window() & IPI_PENDING:
            return "interrupt"
        if not vcpu.tlb:
            if not await READ_ONCE(vcpu.kvm.spte):  # the CPU walks the shadow page table
                return "#PF"
            vcpu.tlb = True
        code = []
        for byte in vcpu.text:
            code.append(await READ_ONCE(byte))
        name, length = decode(tuple(code))
        if name == "int3":
            vcpu.fault = "#BP"
        elif name == "mov" and code[0] != LOCK_PREFIX:  # it stores to a device: never mapped
            return "#PF"
        elif name == NATIVE_NAME[vcpu.host] and code[0] != LOCK_PREFIX:
            vcpu.vm.calls.skip_emulated_instruction(vcpu, length)
            return "hypercall"
        elif await vcpu.vm.calls.ud_is_intercepted(vcpu):
            vcpu.uds = min(vcpu.uds + 1, 2)  # at this host: 0, 1, more
            return "#UD"
    return "hlt"


# ---- exits --------------------------------------------------------------------------------------------------------------------


async def ud_is_intercepted(vcpu: HypercallVcpu) -> bool:
    """The exception bitmap has #UD since 7aa81cc04781.  [vmx.c update_exception_bitmap, svm.c init_vmcb]"""
    return True


async def handle_ud(vcpu: HypercallVcpu) -> int:
    """#UD: the emulator, or else the guest.  kvm->lock is not held.  [vmx.c handle_exception, svm.c ud_interception]"""
    if await vcpu.vm.calls.emulate_instruction(vcpu, True) != EMULATE_DONE:
        vcpu.fault = "#UD"
    return 1


async def handle_vmcall(vcpu: HypercallVcpu) -> int:
    """The host's own instruction.  RIP is past it already.  [vmx.c handle_vmcall, svm.c vmmcall_interception]"""
    vcpu.vm.calls.kvm_emulate_hypercall(vcpu)
    return 1


def skip_emulated_instruction(vcpu: HypercallVcpu, length: int) -> None:
    """The handlers' first act.  VMX is told the length by the CPU; SVM takes 3 for granted.  [svm.c vmmcall_interception]"""
    vcpu.rip += 3 if vcpu.host == AMD else length


async def kvm_mmu_page_fault(vcpu: HypercallVcpu) -> int:
    """Map the page, or emulate an access to a device; kvm->lock is held for both.  [vmx.c handle_exception, svm.c]"""
    async with vcpu.kvm.lock.held_by(vcpu):
        emulated = await page_fault(vcpu)
    if emulated == EMULATE_FAIL:
        vcpu.exit_reason = KVM_EXIT_EXCEPTION
        return 0
    return 1


async def page_fault(vcpu: HypercallVcpu) -> int:
    """The text is mapped if it is not; what faults though it is mapped is an access to a device.  [mmu.c]"""
    if not vcpu.tlb:
        await WRITE_ONCE(vcpu.kvm.spte, True)
        return EMULATE_DONE
    emulated: int = await vcpu.vm.calls.emulate_instruction(vcpu, False)
    return emulated


# ---- the emulator -------------------------------------------------------------------------------------------------------------


async def emulate_instruction(vcpu: HypercallVcpu, trap_ud: bool) -> int:
    """Fetch at CS:RIP through the host's mapping, byte by byte, and execute, whatever it is.  [kvm_main.c, x86_emulate.c]"""
    name, length = await emulator_fetch(vcpu, trap_ud)
    rc = await x86_emulate_insn(vcpu, name, length)
    return EMULATE_FAIL if rc == X86EMUL_UNHANDLEABLE else EMULATE_DONE


async def x86_emulate_insn(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """Execute what was decoded.  [x86_emulate.c x86_emulate_memop; of that name since 2.6.25]"""
    if name in ("vmcall", "vmmcall"):
        rc: int = await vcpu.vm.calls.em_hypercall(vcpu, name, length)
        return rc
    if name == "mov":
        vcpu.rip += length
    return X86EMUL_CONTINUE if name in ("mov", "#PF") else X86EMUL_UNHANDLEABLE


async def emulator_fetch(vcpu: HypercallVcpu, trap_ud: bool) -> tuple[str, int]:
    """The emulator's own fetch: no lock, and not the fetch that trapped.  [x86_emulate.c insn_fetch]

    Nothing is injected if a byte is not mapped: the CPU meets that by itself when it executes the instruction again.  Here the
    guest has its #PF at once.
    """
    code: list[str] = []
    for byte in vcpu.text:
        if not await translates(vcpu, len(code)):
            return "#PF", 0
        code.append(await READ_ONCE(byte))
    name, length = decode(tuple(code))
    vcpu.checkpoint(f"emulates {name} of {length} bytes, {trap_ud=}")  # trap_ud tells which exit this is
    return name, length


async def translates(vcpu: HypercallVcpu, nr: int) -> bool:
    """Guest page tables for byte `nr` of the instruction; what is not present is a #PF of the guest's.  [mmu.c gva_to_gpa]"""
    if vcpu.kvm.straddles and nr == 2 and not await READ_ONCE(vcpu.kvm.pte):
        vcpu.fault = "#PF"
        return False
    return True


async def em_hypercall(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """Patch, run the hypercall, then commit the emulator's copy of the registers over it.  [x86_emulate.c]"""
    copy = vcpu.rax
    rc: int = await vcpu.vm.calls.kvm_fix_hypercall(vcpu)
    if rc != X86EMUL_CONTINUE:
        return rc  # and -EFAULT is not X86EMUL_UNHANDLEABLE: handled, says the emulator
    vcpu.vm.calls.kvm_emulate_hypercall(vcpu)
    vcpu.rax = copy
    vcpu.rip += length
    return X86EMUL_CONTINUE


async def kvm_fix_hypercall(vcpu: HypercallVcpu) -> int:
    """Nobody has the page mapped while it is written: that is what zap and lock are for.  [kvm_main.c]"""
    async with vcpu.kvm.lock.held_by(vcpu):
        await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
        rc = await write_hypercall(vcpu)
    return -EFAULT if rc != X86EMUL_CONTINUE else rc


async def write_hypercall(vcpu: HypercallVcpu) -> int:
    """patch_hypercall() and emulator_write_emulated() at RIP, which is taken for a linear address."""
    rc: int = await vcpu.vm.calls.emulator_write_emulated(vcpu, vcpu.rip, NATIVE[vcpu.host])
    return rc


async def kvm_mmu_zap_all(vcpu: HypercallVcpu) -> None:
    """Drop all shadow page table entries and flush.  [mmu.c]"""
    vcpu.zaps = min(vcpu.zaps + 1, 2)
    await WRITE_ONCE(vcpu.kvm.spte, False)
    await vcpu.vm.calls.kvm_flush_remote_tlbs(vcpu)


async def kvm_flush_remote_tlbs(me: Any) -> None:
    """Ask every vCPU to flush before it enters again; IPI the others out of the guest, and wait.  [kvm_main.c]"""
    asked = await request_flush(me)
    await call_others(me, asked)
    for other in asked:
        await other.pcpu.wait_for_call(me.csd)


async def request_flush(me: Any) -> list[HypercallVcpu]:
    """The requests: the vCPUs whose CPUs have to answer.  One that was asked before is passed over."""
    asked: list[HypercallVcpu] = []
    for other in me.vm.vcpus:
        if not await test_and_set_bit(KVM_TLB_FLUSH, other.requests) and other is not me:
            asked.append(other)
    return asked


async def call_others(me: Any, others: list[HypercallVcpu]) -> None:
    """smp_call_function_mask(): a call queued at each CPU, and an IPI.  Each vCPU thread has its own CPU and stays there."""
    for other in others:
        await other.pcpu.queue_call(me.csd)
        await send_ipi(other.pcpu.name)


async def emulator_write_emulated(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """Mark the page dirty, copy; what the guest's page tables allow is not asked.  [kvm_main.c emulator_write_phys]"""
    if not await gfn_to_page(vcpu.kvm):
        return X86EMUL_CONTINUE  # the address is a device's then: the bytes go to userspace as MMIO
    await vcpu.vm.calls.mark_page_dirty(vcpu)
    return await copy_to_guest(vcpu, address, code)


async def gfn_to_page(kvm: Kvm) -> bool:
    """Is there memory behind the guest's page?  No reference is taken: the pages are the slot's.  [kvm_main.c gfn_to_page]"""
    return not kvm.removable or bool(await READ_ONCE(kvm.slot))


async def copy_to_guest(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """memcpy(), page by page: one store a byte is the weakest that it may be."""
    for nr, (cell, byte) in enumerate(zip(vcpu.kvm.text[vcpu.site + address :], code, strict=False)):
        if not await translates(vcpu, nr):
            return X86EMUL_PROPAGATE_FAULT  # and inject_page_fault() has been called
        await WRITE_ONCE(cell, byte)
    return X86EMUL_CONTINUE


async def mark_page_dirty(vcpu: HypercallVcpu, gfn: int = TEXT_PAGE) -> None:
    """Live migration copies the page again.  [kvm_main.c]"""
    await set_bit(gfn, vcpu.kvm.dirty)


# ---- the hypercall itself: registers are the vCPU's own, so nothing here is a step --------------------------------------------


def kvm_emulate_hypercall(vcpu: HypercallVcpu) -> int:
    """nr = RAX, arguments from RBX on, the result in RAX.  Always 0, which the callers must not return.  [kvm_main.c]"""
    mask: int = vcpu.vm.calls.hypercall_mask(vcpu)
    vcpu.inputs = (vcpu.rax & mask, vcpu.rbx & mask)
    vcpu.rax = vcpu.vm.calls.hypercall_result(vcpu)
    return 0


def hypercall_mask(vcpu: HypercallVcpu) -> int:
    """is_long_mode(), which is EFER.LMA, decides; a 32-bit process under a 64-bit kernel is not masked.  [kvm_main.c]"""
    return -1 if vcpu.long_mode else LOW32


def hypercall_result(vcpu: HypercallVcpu) -> int:
    """No number is known yet: -KVM_ENOSYS, in all of RAX, whoever asks.  [kvm_main.c]"""
    return -KVM_ENOSYS


def complete_hypercall(vcpu: HypercallVcpu) -> None:
    """KVM_RUN begins; RAX = run->hypercall.ret if such an exit was the last.  [kvm_main.c kvm_vcpu_ioctl_run]"""
    if vcpu.exit_reason == KVM_EXIT_HYPERCALL:
        vcpu.rax = -EINVAL_OLD


async def guest_boot(vcpu: HypercallVcpu) -> None:
    """The new ABI: nothing to register; the guest knows it from CPUID."""


#: What variants may replace: the code of 7aa81cc04781 as it was committed.
HYPERCALL_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        complete_hypercall,
        em_hypercall,
        emulate_instruction,
        emulator_write_emulated,
        guest_boot,
        handle_ud,
        handle_vmcall,
        hypercall_mask,
        hypercall_result,
        kvm_emulate_hypercall,
        kvm_fix_hypercall,
        kvm_flush_remote_tlbs,
        kvm_mmu_page_fault,
        kvm_mmu_zap_all,
        mark_page_dirty,
        skip_emulated_instruction,
        ud_is_intercepted,
    )
}
