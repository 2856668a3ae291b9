"""Hypercalls: the instruction bytes in guest memory, the CPU that fetches them, and KVM's patching of them.

vmcall (Intel) is 0f 01 c1 and vmmcall (AMD) is 0f 01 d9; the wrong one for the host's CPU raises #UD.  Since 7aa81cc04781 KVM
intercepts #UD, lets its emulator decode the instruction, and writes the host's own in its place, wherever a guest executes it.

Every byte of guest text is a cell: a CPU that fetches while another one writes may see some new bytes and some old ones.  A vCPU
here is a light thread: VM entry, page walk, fetch, exit, and the exit handlers that matter to hypercalls.

Sources: drivers/kvm/{kvm_main,x86_emulate,mmu,vmx}.c of September 2007, arch/x86/kvm/{x86,emulate}.c later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from actors.actor import Actor, Cell
from actors.ops import (
    IPI_ACKED,
    IPI_PENDING,
    READ_ONCE,
    WRITE_ONCE,
    Op,
    await_eq,
    await_masked,
    local_rmw,
    send_ipi,
    set_bit,
    smp_mb,
    smp_store_release,
    test_and_clear_bit,
    test_and_set_bit,
    xchg,
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
KVM_EXIT_HYPERCALL = 3
KVM_ENOSYS, KVM_EPERM, EFAULT, EINVAL_OLD = 1000, 1, 14, 1
EMULATE_DONE, EMULATE_FAIL = 0, 2
LOW32 = 0xFFFFFFFF
#: what the guest has in RAX and RBX: a number that KVM does not know, and an argument of more than 32 bits
NR, A0 = 5, (1 << 32) + 7


def decode(code: Code) -> tuple[str, int]:
    """(mnemonic, length) of the instruction that these bytes begin with; "?" is none that this model knows."""
    skip = 1 if code[0] in (OPERAND_SIZE, LOCK_PREFIX) else 0
    rest = code[skip:]
    if rest[:3] == VMCALL:
        return "vmcall", skip + 3
    if rest[:3] == VMMCALL:
        return "vmmcall", skip + 3
    return {"89": ("mov", skip + 2), INT3: ("int3", skip + 1)}.get(rest[0], ("?", skip + 1))


class CallPcpu(Pcpu):
    """A physical CPU whose IPIs are those of smp_call_function(): the sender is told when the handler has run."""

    def __init__(self, vm: Any, name: str) -> None:
        super().__init__(vm, name)
        self.deliver_ipi = local_rmw(self.cpu, "call_ipi")

    def ack(self) -> Op:
        """The handler of a call that was pending.  [kvm_main.c ack_flush]"""
        return local_rmw(self.cpu, "or", IPI_ACKED)

    def await_ack(self) -> Op:
        """The sender waits for the handler."""
        return await_masked(self.cpu, IPI_ACKED, IPI_ACKED, clear=IPI_ACKED)


class Kvm(Actor):
    """What the vCPUs of one VM share in the host: `kvm->lock`, the shadow page table entry of the guest's text, its dirty bit."""

    def __init__(self, vm: Any, text: Code, *, writable: bool = True, straddles: bool = False) -> None:
        super().__init__(vm, "kvm")
        memory = vm.guest_memory(**{f"text{i}": byte for i, byte in enumerate(text)})
        self.host_version = memory.cell("host_version", 0)  # of the old ABI's struct kvm_vcpu_para_state
        self.para_ret = memory.cell("para_ret", -1)
        self.text: list[Cell] = [getattr(memory, f"text{i}") for i in range(len(text))]
        self.lock_word = self.cell("lock", "")
        self.lock = Lock(self.lock_word)
        self.mmu_lock_word = self.cell("mmu_lock", "")
        self.mmu_lock = Lock(self.mmu_lock_word)  # since 2.6.25; before, kvm->lock protects the shadow page tables as well
        self.spte = self.cell("spte", True)
        self.dirty = self.cell("dirty", 0)
        self.host = self.cell("host", INTEL)
        self.writable = writable  # the guest's own page tables; nobody changes this
        self.straddles = straddles  # the last byte is on another page, which the guest may unmap:
        self.pte = memory.cell("pte", True)


class HypercallVcpu(Actor):
    """One vCPU thread: it executes the instruction at RIP until RIP is at `end`, `rounds` times."""

    bit_names: ClassVar = {"requests": {KVM_TLB_FLUSH: "TLB_FLUSH"}}

    def __init__(self, vm: Any, kvm: Kvm, vcpu_id: int, *, rounds: int = 1, end: int = 3, fetches: int = 3) -> None:
        super().__init__(vm, f"vcpu{vcpu_id}")
        self.id = vcpu_id
        self.kvm = kvm
        self.pcpu = CallPcpu(vm, f"pcpu{vcpu_id}")
        vm.vcpus.append(self)
        self.requests = self.cell("requests", 0)
        self.stop = self.cell("stop", False)
        self.stopped = self.cell("stopped", False)
        #: what kind of code it runs: all of it is the same during a run
        self.long_mode, self.code64, self.cpl, self.cs_base = True, True, 0, 0
        self.end, self.fetches = end, fetches
        self.migrates: bool
        self.registers = True  # the old ABI: does this vCPU write the MSR first?
        self.rip: int
        self.rax: int
        self.tlb: bool
        self.host: str
        self.rounds: int
        self.fault: str
        self.exit_reason: int
        self.unexplained: int
        self.inputs: tuple[int, ...]
        self.results: tuple[int, ...]
        self.fetched: tuple[str, ...]
        self.emulated: tuple[str, ...]
        self.finished: bool
        self.private(
            rip=0, rax=NR, tlb=True, host=INTEL, rounds=rounds, fault="", exit_reason=0, unexplained=0, inputs=(), results=(),
            fetched=(), emulated=(), finished=False, migrates=False,
        )  # fmt: skip

    @property
    def text(self) -> list[Cell]:
        """The cells of the bytes at CS:RIP."""
        start = self.cs_base + self.rip
        return self.kvm.text[start : start + self.fetches]

    async def run(self) -> None:
        """The VMM's vCPU thread."""
        await self.vm.calls.guest_boot(self)
        while True:
            self.checkpoint("vcpu_run")
            if self.migrates and await READ_ONCE(self.stop):
                await migrated(self)
            self.vm.calls.complete_hypercall(self)
            if self.fault == "#PF" and self.kvm.straddles:  # the guest's handler; then the instruction once more
                await await_eq(self.kvm.pte, True)
                self.fault = ""
            if self.rip >= self.end or self.fault:
                self.results = (*self.results, self.rax)
                self.rounds -= 1
                if not self.rounds or self.fault:
                    break
                self.rip, self.rax = 0, NR
            await vcpu_enter_guest(self)
        self.finished = True


async def migrated(vcpu: HypercallVcpu) -> None:
    """Out of KVM_RUN until the other host runs the VM: a new kvm_run, no TLB, another CPU."""
    await smp_store_release(vcpu.stopped, True)
    await await_eq(vcpu.stop, False)
    vcpu.host = await READ_ONCE(vcpu.kvm.host)
    vcpu.exit_reason, vcpu.tlb, vcpu.migrates = 0, False, False


# ---- the CPU ------------------------------------------------------------------------------------------------------------------


async def vcpu_enter_guest(vcpu: HypercallVcpu) -> None:
    """Enter, run one instruction after the other, exit, handle the exit.  [kvm_main.c __vcpu_run, 2007]"""
    await vcpu.pcpu.local_irq_disable()
    if await READ_ONCE(vcpu.requests) and await test_and_clear_bit(KVM_TLB_FLUSH, vcpu.requests):
        vcpu.tlb = False
    exit_reason = "interrupt"
    if not await vcpu.pcpu.vm_enter() & IPI_PENDING:
        exit_reason = await guest(vcpu)
        await vcpu.pcpu.vm_exit()
    if await vcpu.pcpu.local_irq_enable() & IPI_PENDING:
        await vcpu.pcpu.ack()
    vcpu.note("kvm_exit", reason=exit_reason)
    handler = {"#UD": "handle_ud", "#PF": "kvm_mmu_page_fault", "hypercall": "handle_vmcall"}.get(exit_reason)
    if handler is not None and await getattr(vcpu.vm.calls, handler)(vcpu) <= 0 and not vcpu.exit_reason:
        vcpu.unexplained += 1  # KVM_RUN returns, and the exit reason is that of some earlier time


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
        vcpu.fetched = noted(vcpu.fetched, code)
        name, length = decode(tuple(code))
        if name == "int3":
            vcpu.fault = "#BP"
        elif name == "mov" and code[0] != LOCK_PREFIX:  # it stores to a device: never mapped
            return "#PF"
        elif name == NATIVE_NAME[vcpu.host] and code[0] != LOCK_PREFIX:
            vcpu.rip += length
            return "hypercall"
        elif await vcpu.vm.calls.ud_is_intercepted(vcpu):
            return "#UD"
    return "hlt"


def noted(seen: tuple[str, ...], code: list[str]) -> tuple[str, ...]:
    """`seen` and these bytes."""
    return tuple(dict.fromkeys((*seen, " ".join(code))))


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


async def kvm_mmu_page_fault(vcpu: HypercallVcpu) -> int:
    """Map the page, or emulate an access to a device; kvm->lock is held for both.  [mmu.c kvm_mmu_page_fault, 2007]"""
    async with vcpu.kvm.lock.held_by(vcpu):
        await vcpu.vm.calls.page_fault(vcpu)
    return 1


async def page_fault(vcpu: HypercallVcpu) -> None:
    """The text is mapped if it is not; what faults though it is mapped is an access to a device.  [mmu.c]"""
    if not vcpu.tlb:
        await WRITE_ONCE(vcpu.kvm.spte, True)
    elif await vcpu.vm.calls.emulate_instruction(vcpu, False) == EMULATE_FAIL:
        vcpu.note("kvm_report_emulation_failure")  # a line in the log, and the guest goes on


# ---- the emulator -------------------------------------------------------------------------------------------------------------


async def emulate_instruction(vcpu: HypercallVcpu, trap_ud: bool) -> int:
    """Fetch at CS:RIP through the host's mapping, byte by byte, and execute.  [kvm_main.c, x86_emulate.c insn_fetch]"""
    name, length = await emulator_fetch(vcpu)
    if name == "mov":
        vcpu.rip += length
        return EMULATE_DONE
    if name in ("vmcall", "vmmcall"):
        result: int = await vcpu.vm.calls.em_hypercall(vcpu, name, length)
        return result
    return EMULATE_DONE if name == "#PF" else EMULATE_FAIL


async def emulator_fetch(vcpu: HypercallVcpu) -> tuple[str, int]:
    """The emulator's own fetch: no lock, and not the fetch that trapped."""
    code: list[str] = []
    for byte in vcpu.text:
        if not await translates(vcpu, len(code)):
            return "#PF", 0
        code.append(await READ_ONCE(byte))
    vcpu.emulated = noted(vcpu.emulated, code)
    return decode(tuple(code))


async def translates(vcpu: HypercallVcpu, nr: int) -> bool:
    """Guest page tables for byte `nr` of the instruction; what is not present is a #PF of the guest's.  [kvm_main.c, 2007]"""
    if vcpu.kvm.straddles and nr == 2 and not await READ_ONCE(vcpu.kvm.pte):
        vcpu.fault = "#PF"
        return False
    return True


async def em_hypercall(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """Patch, run the hypercall, then commit the emulator's copy of the registers over it.  [x86_emulate.c, 7aa81cc04781]"""
    copy = vcpu.rax
    if await vcpu.vm.calls.kvm_fix_hypercall(vcpu):
        return EMULATE_DONE  # rc is not X86EMUL_UNHANDLEABLE: handled, says the emulator
    vcpu.vm.calls.kvm_emulate_hypercall(vcpu)
    vcpu.rax = copy
    vcpu.rip += length
    return EMULATE_DONE


async def kvm_fix_hypercall(vcpu: HypercallVcpu) -> int:
    """Nobody has the page mapped while it is written: that is what zap and lock are for.  [kvm_main.c, 7aa81cc04781]"""
    async with vcpu.kvm.lock.held_by(vcpu):
        await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
        result = await write_hypercall(vcpu)
    return result


async def write_hypercall(vcpu: HypercallVcpu) -> int:
    """patch_hypercall() and emulator_write_emulated() at RIP, which is taken for a linear address."""
    result: int = await vcpu.vm.calls.emulator_write_emulated(vcpu, vcpu.rip, NATIVE[vcpu.host])
    return result


async def kvm_mmu_zap_all(vcpu: HypercallVcpu) -> None:
    """Drop all shadow page table entries and flush.  [mmu.c]"""
    await WRITE_ONCE(vcpu.kvm.spte, False)
    await vcpu.vm.calls.kvm_flush_remote_tlbs(vcpu)


async def kvm_flush_remote_tlbs(vcpu: HypercallVcpu) -> None:
    """Ask every vCPU to flush before it enters again; IPI the others out of the guest, and wait.  [kvm_main.c, 2007]"""
    for other in await request_flush(vcpu):
        await other.pcpu.await_ack()


async def request_flush(vcpu: HypercallVcpu) -> list[HypercallVcpu]:
    """The first half: requests and IPIs; the vCPUs whose answers are outstanding.  One that was asked before is passed over."""
    asked = []
    for other in vcpu.vm.vcpus:
        if await test_and_set_bit(KVM_TLB_FLUSH, other.requests) or other is vcpu:
            continue
        await send_ipi(other.pcpu.name)
        asked.append(other)
    return asked


async def emulator_write_emulated(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """Mark the page dirty, copy; what the guest's page tables allow is not asked.  [kvm_main.c emulator_write_phys, 2007]"""
    await vcpu.vm.calls.mark_page_dirty(vcpu)
    return await copy_to_guest(vcpu, address, code)


async def copy_to_guest(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """memcpy(), page by page: one store a byte is the weakest that it may be."""
    for nr, (cell, byte) in enumerate(zip(vcpu.kvm.text[address:], code, strict=False)):
        if not await translates(vcpu, nr):
            return -EFAULT
        await WRITE_ONCE(cell, byte)
    return 0


async def mark_page_dirty(vcpu: HypercallVcpu) -> None:
    """Live migration copies the page again.  [kvm_main.c mark_page_dirty]"""
    await set_bit(0, vcpu.kvm.dirty)


# ---- the hypercall itself: registers are the vCPU's own, so nothing here is a step --------------------------------------------


def kvm_emulate_hypercall(vcpu: HypercallVcpu) -> int:
    """nr = RAX, arguments from RBX on, the result in RAX.  Always 0, which the callers must not return.  [kvm_main.c]"""
    mask: int = vcpu.vm.calls.hypercall_mask(vcpu)
    vcpu.inputs = (vcpu.rax & mask, A0 & mask)
    vcpu.rax = vcpu.vm.calls.hypercall_result(vcpu)
    return 0


def hypercall_mask(vcpu: HypercallVcpu) -> int:
    """is_long_mode(), which is EFER.LMA, decides; a 32-bit process under a 64-bit kernel is not masked.  [kvm_main.c]"""
    return -1 if vcpu.long_mode else LOW32


def hypercall_result(vcpu: HypercallVcpu) -> int:
    """No number is known yet: -KVM_ENOSYS, in all of RAX, whoever asks.  [kvm_main.c]"""
    return -KVM_ENOSYS


def complete_hypercall(vcpu: HypercallVcpu) -> None:
    """KVM_RUN begins; the old ABI's exit is completed, though nothing exits so any more.  [kvm_main.c kvm_vcpu_ioctl_run]"""
    if vcpu.exit_reason == KVM_EXIT_HYPERCALL:
        vcpu.rax, vcpu.exit_reason = -EINVAL_OLD, 0


async def guest_boot(vcpu: HypercallVcpu) -> None:
    """The new ABI: nothing to register; the guest knows it from CPUID."""


# ---- live migration -----------------------------------------------------------------------------------------------------------


class Migration(Actor):
    """The VMM's migration thread: copy the text while the guest runs, stop it, copy what is dirty, go on at an AMD host."""

    def __init__(self, vm: Any, kvm: Kvm) -> None:
        super().__init__(vm, "migration")
        self.kvm = kvm
        self.image: Code
        self.private(image=())

    async def copy(self) -> None:
        """Read the text."""
        image = []
        for cell in self.kvm.text[:3]:
            image.append(await READ_ONCE(cell))
        self.image = tuple(image)

    async def get_dirty_log(self) -> int:
        """Take the dirty bit under kvm->lock.  [kvm_main.c kvm_vm_ioctl_get_dirty_log]"""
        async with self.kvm.lock.held_by(self):
            dirty: int = await xchg(self.kvm.dirty, 0)
        return dirty

    async def run(self) -> None:
        """One round while the guest runs, the rest while it is stopped."""
        await self.copy()
        for vcpu in self.vm.vcpus:
            await WRITE_ONCE(vcpu.stop, True)
            await smp_mb()
            await send_ipi(vcpu.pcpu.name)
            await vcpu.pcpu.await_ack()
            await await_eq(vcpu.stopped, True)
        if await self.get_dirty_log():
            await self.copy()
        for cell, byte in zip(self.kvm.text, self.image, strict=False):
            await WRITE_ONCE(cell, byte)  # the destination's memory
        await WRITE_ONCE(self.kvm.spte, False)
        await WRITE_ONCE(self.kvm.host, AMD)
        for vcpu in self.vm.vcpus:
            await smp_store_release(vcpu.stop, False)


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
        page_fault,
        ud_is_intercepted,
    )
}
