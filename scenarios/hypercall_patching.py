"""A guest's hypercall instruction is rewritten while its vCPUs execute it (KVM patch 7aa81cc04781, September 2007).

Intel's vmcall (0f 01 c1) and AMD's vmmcall (0f 01 d9) do the same, and each is #UD on the other's CPUs.  Before the patch a
guest registers a page by an MSR and KVM writes the right instruction into it: once, so it is the wrong one after a live
migration to the other vendor; and with plain stores, so another vCPU that calls the page meanwhile can fetch a mix of old and
new bytes.  The patch ("after") has the guest inline either instruction.  KVM takes the #UD and writes the host's own over it,
with kvm->lock held, all mappings zapped and all vCPUs flushed out of the guest: nobody can fetch while it writes.

Only one byte differs, so a plain vmcall needs none of that: no mix of the two is a third instruction (set-up smp; the zap was
dropped later).  With a prefix it is needed (prefixed), and there the patch has a bug that is in 6.16 still: the three bytes are
written over the prefix, and a stray byte is left behind (prefix_twice).  The emulator's own fetch never was under the lock, so
it can be torn even where no CPU's fetch can (emulator_fetch).

As it was committed the patch also loses the result of the first call (H-M8, set-up first_call), and locks kvm->lock twice when
the emulator meets a hypercall under a page fault (rewrite).  33e3885de251 has the CPU re-execute a vmcall that was patched.  A
vmmcall was patched and then skipped (case 3 of group 7 in x86_emulate.c, 2.6.30; em_vmmcall() in emulate.c, 3.11): that is
H-M9, until em_hypercall() took the place of both.  RIP is still taken for a linear address (cs_base): since the CPU re-executes,
that is an endless #UD loop, and bytes elsewhere are overwritten.

The mutants H-M1 and H-M2 are "before" in set-ups migration and smp, H-M8 is "after" itself, H-M14 (two vCPUs fix one site) is
"after" in smp.  Modelled: the bytes, fetch by CPU and emulator, #UD and #PF exits, the flush with its IPIs and answers, dirty bit
and migration.  Left out: known hypercall numbers, nested guests, the hypercall page of a removed memslot, guest TLBs in straddle.
"""

from collections.abc import Callable, Iterator
from typing import Any

from actors.hypercall import (
    A0,
    EFAULT,
    EINVAL_OLD,
    EMULATE_DONE,
    EMULATE_FAIL,
    HYPERCALL_FUNCTIONS,
    INT3,
    INTEL,
    KVM_ENOSYS,
    KVM_EPERM,
    KVM_EXIT_HYPERCALL,
    KVM_TLB_FLUSH,
    LOCK_PREFIX,
    LOW32,
    NATIVE,
    NR,
    OPERAND_SIZE,
    RET,
    VMCALL,
    VMMCALL,
    Code,
    HypercallVcpu,
    Kvm,
    Migration,
    copy_to_guest,
    emulator_fetch,
    handle_ud,
    hypercall_result,
    kvm_emulate_hypercall,
    page_fault,
    request_flush,
    write_hypercall,
)
from actors.ops import IN_GUEST, READ_ONCE, WRITE_ONCE, send_ipi, test_and_set_bit
from actors.ops import Code as OpCode
from actors.thread import Thread
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm


# One blank line between functions from here to `fmt: on`, so that a version is seen on one screen.
# fmt: off
# ---- before: the old ABI
async def vcpu_register_para(vcpu: HypercallVcpu) -> None:
    """WRMSR 0x87655678: versions, the four bytes `vmcall; ret` through the kernel's mapping, ret = 0.  [kvm_main.c, 2.6.23]"""
    if vcpu.registers:
        await WRITE_ONCE(vcpu.kvm.host_version, 1)
        await vcpu.vm.calls.mark_page_dirty(vcpu)
        await copy_to_guest(vcpu, 0, (*NATIVE[vcpu.host], RET))
        await WRITE_ONCE(vcpu.kvm.para_ret, 0)

async def ud_goes_to_the_guest(vcpu: HypercallVcpu) -> bool:
    """Only #PF is intercepted.  [vmx.c update_exception_bitmap, 2.6.23]"""
    vcpu.fault = "#UD"
    return False

async def em_hypercall_unknown(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """The emulator knows neither instruction.  [x86_emulate.c, 2.6.23]"""
    return EMULATE_FAIL

async def handle_vmcall_before(vcpu: HypercallVcpu) -> int:
    """A number that KVM does not know goes to userspace, which leaves ret = -EINVAL.  [kvm_main.c kvm_hypercall, 2.6.23]"""
    vcpu.inputs = (vcpu.rax, A0) if vcpu.long_mode else (vcpu.rax & LOW32, A0 & LOW32)
    vcpu.exit_reason = KVM_EXIT_HYPERCALL
    return 0

# ---- re-execution, and what else came later
async def em_hypercall_2_6_30(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """RIP is set back in the vmcall case only.  [x86_emulate.c, 2.6.30; em_vmcall() and em_vmmcall() of emulate.c, 3.11]"""
    if not await vcpu.vm.calls.kvm_fix_hypercall(vcpu) and name == "vmmcall":
        vcpu.rip += length
    return EMULATE_DONE

async def em_hypercall_today(vcpu: HypercallVcpu, name: str, length: int) -> int:
    """Patch and let the processor re-execute.  [emulate.c em_hypercall, 6.16]"""
    await vcpu.vm.calls.kvm_fix_hypercall(vcpu)
    return EMULATE_DONE

async def emulate_instruction_trap_ud(vcpu: HypercallVcpu, trap_ud: bool) -> int:
    """EMULTYPE_TRAP_UD: nothing but a hypercall is emulated because of a #UD.  [x86.c, 571008daccc1]"""
    name, length = await emulator_fetch(vcpu)
    if name in ("vmcall", "vmmcall"):
        result: int = await vcpu.vm.calls.em_hypercall(vcpu, name, length)
        return result
    if name == "mov" and not trap_ud:
        vcpu.rip += length
        return EMULATE_DONE
    return EMULATE_DONE if name == "#PF" else EMULATE_FAIL

async def fix_hypercall_2_6_25(vcpu: HypercallVcpu) -> int:
    """mmu_lock is held in kvm_mmu_zap_all() only: what kept others from mapping the page again is gone.  [x86.c, 2.6.25]"""
    async with vcpu.kvm.mmu_lock.held_by(vcpu):
        await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
    return await write_hypercall(vcpu)

async def page_fault_2_6_25(vcpu: HypercallVcpu) -> int:
    """Emulation is outside of mmu_lock.  [mmu.c kvm_mmu_page_fault, 2.6.25]"""
    if vcpu.tlb:
        await page_fault(vcpu)
    else:
        async with vcpu.kvm.mmu_lock.held_by(vcpu):
            await page_fault(vcpu)
    return 1

async def fix_hypercall_3_11(vcpu: HypercallVcpu) -> int:
    """No zap any more.  [x86.c emulator_fix_hypercall, 3.11 to 6.16]"""
    return await write_hypercall(vcpu)

async def fix_hypercall_quirk_off(vcpu: HypercallVcpu) -> int:
    """KVM_X86_QUIRK_FIX_HYPERCALL_INSN is disabled: the guest gets its #UD.  [x86.c emulator_fix_hypercall, f1a9761fbb00]"""
    vcpu.fault = "#UD"
    return EFAULT

async def write_emulated_today(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """The guest's page tables are asked, #PF is injected; dirty after the copy.  [x86.c emulator_write_emulated, 3.11]"""
    if not vcpu.kvm.writable:
        vcpu.fault = "#PF"
        return EFAULT
    failed = await copy_to_guest(vcpu, address, code)
    await vcpu.vm.calls.mark_page_dirty(vcpu)
    return failed

def no_exit_to_complete(vcpu: HypercallVcpu) -> None:
    """Nothing of the old ABI is left in KVM_RUN.  [x86.c kvm_arch_vcpu_ioctl_run since complete_mmio()]"""

def hypercall_mask_today(vcpu: HypercallVcpu) -> int:
    """is_64_bit_mode(): the code segment decides.  [x86.c kvm_emulate_hypercall, 4.19]"""
    return -1 if vcpu.code64 else LOW32

def hypercall_result_today(vcpu: HypercallVcpu) -> int:
    """Ring 0 only, and 32 bits to 32-bit code.  [x86.c kvm_emulate_hypercall, 4.19]"""
    result = -KVM_EPERM if vcpu.cpl else -KVM_ENOSYS
    return result if vcpu.code64 else result & LOW32

def hypercall_result_cpl(vcpu: HypercallVcpu) -> int:
    """[x86.c kvm_emulate_hypercall, 07708c4af134]"""
    return -KVM_EPERM if vcpu.cpl else hypercall_result(vcpu)

# ---- mutants
async def m3_write_first(vcpu: HypercallVcpu) -> int:
    """kvm_fix_hypercall(): the write before the zap."""
    async with vcpu.kvm.lock.held_by(vcpu):
        result = await write_hypercall(vcpu)
        await vcpu.vm.calls.kvm_mmu_zap_all(vcpu)
    return result

async def m4_no_wait(vcpu: HypercallVcpu) -> None:
    """kvm_flush_remote_tlbs(): IPIs are sent, nobody waits for them."""
    await request_flush(vcpu)

async def ipi_first(vcpu: HypercallVcpu) -> None:
    """kvm_flush_remote_tlbs(): a vCPU that enters again between IPI and request keeps its TLB."""
    others = [other for other in vcpu.vm.vcpus if other is not vcpu]
    for other in others:
        await send_ipi(other.pcpu.name)
    for other in vcpu.vm.vcpus:
        await test_and_set_bit(KVM_TLB_FLUSH, other.requests)
    for other in others:
        await other.pcpu.await_ack()

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
    await vcpu.vm.calls.kvm_fix_hypercall(vcpu)
    vcpu.rip += length
    return EMULATE_DONE

async def m10_ud_locks(vcpu: HypercallVcpu) -> int:
    """The #UD handler takes kvm->lock, as that of #PF does."""
    async with vcpu.kvm.lock.held_by(vcpu):
        return await handle_ud(vcpu)

async def m11_no_fault(vcpu: HypercallVcpu, address: int, code: Code) -> int:
    """emulator_write_emulated(): the write fails, and nothing is injected."""
    if not vcpu.kvm.writable:
        return EFAULT
    return await write_emulated_today(vcpu, address, code)

def m12_mask(vcpu: HypercallVcpu) -> int:
    """32 bits, always."""
    return LOW32

async def m13_result(vcpu: HypercallVcpu) -> int:
    """handle_vmcall() returns the 0 of kvm_emulate_hypercall()."""
    return kvm_emulate_hypercall(vcpu)

async def not_dirty(vcpu: HypercallVcpu) -> None:
    """mark_page_dirty() is forgotten."""

BEFORE: dict[str, Callable[..., Any]] = {
    "guest_boot": vcpu_register_para, "ud_is_intercepted": ud_goes_to_the_guest, "handle_vmcall": handle_vmcall_before,
    "em_hypercall": em_hypercall_unknown,
}
V2_6_25: dict[str, Callable[..., Any]] = {
    "kvm_fix_hypercall": fix_hypercall_2_6_25, "kvm_mmu_page_fault": page_fault_2_6_25,
    "emulate_instruction": emulate_instruction_trap_ud,
}
V2_6_30: dict[str, Callable[..., Any]] = {**V2_6_25, "em_hypercall": em_hypercall_2_6_30}
V3_11: dict[str, Callable[..., Any]] = {
    **V2_6_30, "kvm_fix_hypercall": fix_hypercall_3_11, "emulator_write_emulated": write_emulated_today,
    "hypercall_result": hypercall_result_cpl, "complete_hypercall": no_exit_to_complete,
}
TODAY: dict[str, Callable[..., Any]] = {
    **V3_11, "em_hypercall": em_hypercall_today, "hypercall_mask": hypercall_mask_today,
    "hypercall_result": hypercall_result_today,
}

async def reader(me: Thread) -> None:
    """Another CPU of the guest reads its text as data."""
    for cell in me.vm.vcpus[0].kvm.text[:3]:
        await READ_ONCE(cell)

async def swapper(me: Thread) -> None:
    """Another CPU of the guest unmaps the second page of the site, and maps it again."""
    await WRITE_ONCE(me.vm.vcpus[0].kvm.pte, False)
    await WRITE_ONCE(me.vm.vcpus[0].kvm.pte, True)

async def rewriter(me: Thread) -> None:
    """Another CPU of the guest rewrites `mov %eax,(%rcx)` into a hypercall, with one store of one byte."""
    await WRITE_ONCE(me.vm.memory.text0, "0f")

def sometimes(*setups: str, word: Claim = Sometimes) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, word)

def always(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups that always go wrong."""
    return dict.fromkeys(setups, Always)
# fmt: on


def never(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups in which what others do wrong is right."""
    return dict.fromkeys(setups, Never)


#: set-ups that go wrong because something is patched, or emulated
NO_PATCHING = ("emulator_fetch", "prefix_twice", "rewrite", "read_only", "other_ud", "cs_base")
FIXED_TODAY: dict[str, Claim] = {
    **sometimes("prefixed"),
    **never("rewrite", "other_ud", "first_call", "user_mode", "read_only", "compat", "leftover"),
}


class WholeFetch(Monitor):
    """A vCPU fetches the whole old instruction or the whole new one; `emulator`: what KVM's emulator fetches for it is judged."""

    check = "H-I1"

    def __init__(self, vcpu: HypercallVcpu, *, emulator: bool) -> None:
        self.text = vcpu.kvm.text[: vcpu.fetches]
        super().__init__(self.text, reads=[vcpu.pcpu.cpu], got=())
        self.vcpu = vcpu
        self.emulator = emulator
        old = tuple(cell.init for cell in self.text)
        self.whole = (old, (*NATIVE[INTEL], *old[3:]))
        self.number: dict[Any, int] = {cell: nr for nr, cell in enumerate(self.text)}

    def on_step(self, step: Step) -> Violation | None:
        in_guest = bool(self.vcpu.pcpu.cpu.value & IN_GUEST)
        if step.kind or step.op.code != OpCode.LOAD or step.thread != self.vcpu.name or in_guest == self.emulator:
            return None
        nr = self.number[step.cell]
        got = self.ghost["got"] = (*self.ghost["got"][:nr], step.result)
        self.where[f"byte {nr}"] = step.n
        if len(got) < len(self.text) or got in self.whole:
            return None
        who = "emulator" if self.emulator else "CPU"
        text = f"{self.vcpu.name}'s {who} fetches {' '.join(got)}: neither old nor new"
        return Violation(self.check, text, tuple(self.where[f"byte {i}"] for i in range(len(got))))


class ShipsDirty(Monitor):
    """What the destination of a migration gets is what the source had."""

    check = "H-I5"

    def on_step(self, step: Step) -> Violation | None:
        if step.thread == "migration" and step.writes and step.before != step.after:
            assert step.cell is not None
            text = f"the destination gets {step.after} where the source had {step.before} in {step.cell.label}"
            return Violation(self.check, text, (step.n,))
        return None


PREFIXED = (OPERAND_SIZE, *VMMCALL)
#: text at the start, by set-up; the rest has AMD's instruction, and the host is Intel's
TEXT: dict[str, Code] = {
    "prefixed": PREFIXED, "emulator_fetch": PREFIXED, "prefix_twice": PREFIXED, "rewrite": ("89", *VMCALL[1:]),
    "other_ud": (LOCK_PREFIX, "89", "01"), "cs_base": (RET, RET, RET, *VMMCALL),
    **dict.fromkeys(("native", "compat", "user_mode", "leftover"), VMCALL),
}  # fmt: skip
RACES = ("smp", "prefixed", "emulator_fetch")
REGISTERS = ("first_call", "native", "compat", "user_mode", "leftover")  # judged for them


class HypercallPatching(Scenario):
    """Two vCPUs and one hypercall instruction, which is the other vendor's."""

    name = "hypercall_patching"
    patch = "7aa81cc04781 KVM: Refactor hypercall infrastructure (v3) (2007)"
    functions = HYPERCALL_FUNCTIONS
    max_steps = 2_000
    max_vcpus = 4
    setups = {
        "smp": Setup("both vCPUs make the same hypercall; before: vCPU0 registers its page, vCPU1 calls it meanwhile"),
        "prefixed": Setup("as smp, and the instruction has an operand-size prefix; what the guest fetches is judged"),
        "emulator_fetch": Setup("as prefixed; what the emulator fetches is judged"),
        "straddle": Setup("one vCPU, the last byte is on another page, which another CPU of the guest unmaps and maps"),
        "prefix_twice": Setup("one vCPU executes the prefixed instruction twice"),
        "migration": Setup("two hypercalls of one vCPU, which is moved from an Intel host to an AMD host meanwhile"),
        "rewrite": Setup("vCPU0's store to a device is emulated while vCPU1 rewrites that instruction into a hypercall"),
        "first_call": Setup("one vCPU, 64-bit, a hypercall that must be patched: registers"),
        "native": Setup("one vCPU, 64-bit, a hypercall in the host's own instruction: registers"),
        "compat": Setup("as native, from a 32-bit process under a 64-bit kernel"),
        "user_mode": Setup("as native, from ring 3"),
        "read_only": Setup("one vCPU, and the guest's page tables map its text read-only"),
        "other_ud": Setup("one vCPU executes an invalid instruction that is no hypercall (a locked mov)"),
        "cs_base": Setup("one vCPU runs 16-bit code whose code segment does not start at 0"),
        "leftover": Setup("as native, and userspace left KVM_EXIT_HYPERCALL in the exit reason"),
    }
    #: what the patch as committed does, and with it whatever does not fix it
    claims = {
        **sometimes("emulator_fetch", "rewrite"),
        **always("prefix_twice", "first_call", "compat", "user_mode", "read_only", "other_ud", "cs_base", "leftover"),
    }
    variants = {
        "before": Variant("2.6.23: a page registered by MSR and written once; #UD is the guest's", BEFORE,
                          {**sometimes("smp", "migration"), **never(*NO_PATCHING, "user_mode", "first_call")}),
        "after": Variant("the patch as committed: every #UD is emulated, hypercalls are patched and run there"),
        "2.6.25": Variant("mmu_lock: no lock is held from the zap to the write; only hypercalls are emulated on #UD", V2_6_25,
                          {**sometimes("prefixed"), **never("rewrite", "other_ud")}),
        "2.6.30": Variant("a patched vmcall is re-executed, a patched vmmcall is skipped", V2_6_30,
                          {**sometimes("prefixed"), **never("rewrite", "other_ud")}),
        "3.11": Variant("no zap any more; ring 0 only; the guest's page tables are asked", V3_11,
                        {**sometimes("prefixed"), **never("rewrite", "other_ud", "user_mode", "read_only", "leftover")}),
        "today": Variant("6.16: vmmcall is re-executed too; 32-bit code is told from 32-bit mode", TODAY, FIXED_TODAY),
        "quirk_off": Variant("6.16 with KVM_X86_QUIRK_FIX_HYPERCALL_INSN disabled: the wrong instruction is the guest's #UD",
                             {**TODAY, "kvm_fix_hypercall": fix_hypercall_quirk_off},
                             {**FIXED_TODAY, **never(*NO_PATCHING, "prefixed"), **sometimes("rewrite")},
                             {"H-L1": "userspace asked for it", "H-I2": "userspace asked for it"}),
        "H-M3": Variant("write before zap", {"kvm_fix_hypercall": m3_write_first}, sometimes("prefixed")),
        "H-M4": Variant("the flush does not wait for its IPIs", {"kvm_flush_remote_tlbs": m4_no_wait}, sometimes("prefixed")),
        "H-M5": Variant("the lock is dropped between zap and write", {"kvm_fix_hypercall": m5_unlocked_write},
                        sometimes("prefixed")),
        "H-M6": Variant("the page fault handler takes no lock", {"kvm_mmu_page_fault": m6_fault_unlocked},
                        {**sometimes("prefixed"), **never("rewrite")}),
        "H-M9": Variant("today, and re-execution is forgotten: the hypercall is skipped", {**TODAY, "em_hypercall": m9_skipped},
                        {**FIXED_TODAY, **always("first_call")}),
        "H-M10": Variant("the #UD handler takes kvm->lock too", {"handle_ud": m10_ud_locks},
                         {**always("smp", "prefixed", "emulator_fetch", "straddle"), **sometimes("migration")}),
        "H-M11": Variant("today, and a failed write is called handled and injects nothing",
                         {**TODAY, "emulator_write_emulated": m11_no_fault}, {**FIXED_TODAY, **always("read_only")}),
        "H-M12": Variant("inputs are masked to 32 bits, always", {"hypercall_mask": m12_mask}, always("native")),
        "H-M13": Variant("the hypercall's 0 is returned from the exit handler", {"handle_vmcall": m13_result}, always("native")),
        "not_dirty": Variant("the patched page is not marked dirty", {"mark_page_dirty": not_dirty}, sometimes("migration")),
        "ipi_first": Variant("the flush sends its IPIs before it sets the requests", {"kvm_flush_remote_tlbs": ipi_first},
                             sometimes("prefixed")),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """vCPU0, and vCPU1 where there is a race."""
        old = vm.calls.guest_boot is vcpu_register_para and setup not in ("rewrite", "other_ud")
        text = (INT3,) * 4 if old else TEXT.get(setup, VMMCALL)  # old: the page that it registers
        kvm = Kvm(vm, text, writable=setup != "read_only", straddles=setup == "straddle" and not old)
        wide = text[0] == OPERAND_SIZE
        end = 2 if setup == "rewrite" else 4 if setup == "prefix_twice" and wide else 3
        rounds = 2 if setup in ("prefix_twice", "migration") else 1
        vcpus = range(vm.size if setup == "smp" or (setup in RACES and not old) else 1)  # the page has no prefix
        for i in vcpus:
            vcpu = HypercallVcpu(vm, kvm, i, rounds=rounds, end=end, fetches=4 if wide else 3)
            vcpu.registers = old and not (setup == "smp" and i > 0)
            vcpu.code64 = setup != "compat"
            vcpu.cpl = 3 if setup == "user_mode" else 0
            vcpu.cs_base = 3 if setup == "cs_base" and not old else 0
            vcpu.private(migrates=setup == "migration", exit_reason=KVM_EXIT_HYPERCALL if setup == "leftover" else 0)
        if setup == "migration":
            Migration(vm, kvm)
        others = {"rewrite": rewriter, "straddle": swapper, "read_only": reader, "cs_base": reader}
        if setup in others:
            Thread(vm, f"vcpu{len(vcpus)}", others[setup])

    def vcpus_of(self, vm: Vm) -> list[HypercallVcpu]:
        """The vCPUs that execute hypercalls."""
        return [actor for actor in vm.actors if isinstance(actor, HypercallVcpu) and vm.in_question(actor)]

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        (kvm,) = (actor for actor in vm.actors if isinstance(actor, Kvm))
        if vm.setup == "migration":
            return [ShipsDirty(kvm.text[:3])]
        emulator = vm.setup == "emulator_fetch"
        return [WholeFetch(v, emulator=emulator) for v in self.vcpus_of(vm)] if vm.setup in RACES else []

    def stuck(self, vm: Vm) -> list[Violation]:
        """Everything else is judged at the end: what was fetched, what became of registers and memory, who still waits."""
        found = []
        for vcpu in self.vcpus_of(vm):
            if not vcpu.finished:
                mine = vcpu.kvm.lock_word.value == vcpu.name
                text = f"{vcpu.name} waits for kvm->lock, which it holds" if mine else f"{vcpu.name} does not go on"
                found.append(Violation("H-I4", text))
            found += [Violation(check, f"{vcpu.name}{text}") for check, text in self.wrong(vm, vcpu)]
        return found

    def wrong(self, vm: Vm, vcpu: HypercallVcpu) -> Iterator[tuple[str, str]]:
        """(check, what) for one vCPU."""
        setup, text = vm.setup, vcpu.kvm.text
        if setup in ("smp", "straddle", "migration", "prefix_twice") and vcpu.fault not in ("", "#BP"):
            yield "H-L1", f" makes a hypercall, and its guest takes {vcpu.fault}"
        if setup in REGISTERS:
            yield from self.wrong_registers(vm, vcpu)
        if setup == "migration" and vm.calls.guest_boot is vcpu_register_para and NR in vcpu.results:
            yield "H-I2", "'s hypercall was answered by userspace, and RAX is still its number"
        if setup == "other_ud" and vcpu.fault != "#UD":
            yield "H-I6", " executes an invalid instruction, and KVM emulates it"
        if setup == "rewrite" and vcpu.fault:
            yield "H-I6", f" stores to a device, and its guest takes {vcpu.fault}"
        if setup in ("cs_base", "read_only") and not vcpu.registers:
            around = text[:3] if setup == "cs_base" else text
            yield from (("H-I3", f"'s KVM changes {cell.label}") for cell in around if cell.value != cell.init)

    def wrong_registers(self, vm: Vm, vcpu: HypercallVcpu) -> Iterator[tuple[str, str]]:
        """What one hypercall did to the guest's registers."""
        mask = -1 if vcpu.code64 else LOW32
        answer = -EINVAL_OLD if vcpu.registers else -KVM_EPERM if vcpu.cpl else -KVM_ENOSYS & mask
        if vcpu.fault:
            yield "H-I2", f" makes a hypercall, and its guest takes {vcpu.fault}"
        elif not vcpu.inputs:
            yield "H-I2", "'s hypercall is skipped"
        elif vcpu.inputs != (NR, A0 & mask):
            yield "H-I2", f"'s hypercall has {vcpu.inputs[0]:#x}({vcpu.inputs[1]:#x}) for {NR:#x}({A0 & mask:#x})"
        elif vcpu.results != (answer,):
            yield "H-I2", f"'s hypercall leaves RAX = {vcpu.results[0]} for {answer}"
        if vcpu.unexplained:
            yield "H-I7", "'s KVM_RUN returns to userspace and has set no exit reason"

    def outcome(self, vm: Vm) -> str:
        """What each vCPU got."""
        return "; ".join(
            f"{v.name} {v.fault or ('RAX ' + ', '.join(map(str, v.results)) if v.finished else 'waits')}"
            for v in self.vcpus_of(vm)
        )
