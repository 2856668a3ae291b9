"""A guest's hypercall instruction is rewritten while its vCPUs execute it (KVM patch 7aa81cc04781, September 2007).

Intel's vmcall (0f 01 c1) and AMD's vmmcall (0f 01 d9) do the same, and each is #UD on the other's CPUs.  Before the patch a
guest registers a page by an MSR and KVM writes the right instruction into it: once, so it is the wrong one after a live
migration to the other vendor (H-1); with plain stores, so a vCPU that calls the page meanwhile can fetch a mix (H-2); for each
vCPU alone (H-3, two_pages); and without a lock, so that the page may be freed meanwhile (H-4, slot_removed), or its dirty bit
taken before the bytes are there (precopy).  The patch ("after") has the guest inline either instruction.  KVM takes the #UD and
writes the host's own over it, with kvm->lock held, all mappings zapped and all vCPUs flushed out of the guest: nobody can fetch
while it writes.

Only one byte differs, so a plain vmcall needs none of that: no mix of the two is a third instruction (set-up smp; the zap was
dropped later).  With a prefix it is needed (prefixed), and there the patch has a bug that is in 6.16 still: the three bytes are
written over the prefix, and a stray byte is left behind (prefix_twice).  The emulator's own fetch never was under the lock, so
it can be torn even where no CPU's fetch can (emulator_fetch); what the guest stores after that fetch is lost, and what it stores
before is answered by a #UD that belongs to the instruction that was there (poke).

As it was committed the patch also loses the result of the first call (H-M8, first_call), and locks kvm->lock twice when the
emulator meets a hypercall under a page fault (rewrite).  33e3885de251 has the CPU re-execute a vmcall that was patched.  A
vmmcall was patched and then skipped (case 3 of group 7 in x86_emulate.c, 2.6.30; em_vmmcall() in emulate.c, 3.18): that is H-M9,
until em_hypercall() took the place of both.  RIP is still taken for a linear address (cs_base): since the CPU re-executes, that
is an endless #UD loop, and bytes elsewhere are overwritten.  3.8 to 3.18 inject a stale vector if the write fails (read_only).
SVM of 2007 takes every vmmcall for 3 bytes long, so that a prefixed one goes on in its own last byte (prefixed_amd).

H-M1 and H-M2 are "before" in migration and smp, H-M8 is "after" itself, H-M14 (two vCPUs fix one site) is "after" in smp; H-M5
became real with 10589a4699bb and aaee2c94f7a1 (mmu_lock).  A ring-3 program can have all mappings zapped as often as it likes:
no race, but counted (ring3_zaps).  A vendor's callback that wrote 4 bytes would overrun 3 on the stack: no race, and not here.
Left out: known hypercall numbers, nested guests, guest TLBs in straddle and poke, reads of a page that was freed.
"""

from collections.abc import Callable, Iterator
from typing import Any

from actors.hypercall import (
    AMD,
    EINVAL_OLD,
    FREED,
    HYPERCALL_FUNCTIONS,
    INT3,
    INTEL,
    KVM_ENOSYS,
    KVM_EPERM,
    KVM_EXIT_HYPERCALL,
    LOCK_PREFIX,
    LOW32,
    NATIVE,
    OPERAND_SIZE,
    PARA_PAGE,
    RET,
    TEXT_PAGE,
    VMCALL,
    VMMCALL,
    Code,
    HypercallVcpu,
    Kvm,
)
from actors.hypercall_later import (
    em_hypercall_2_6_26,
    em_hypercall_2_6_30,
    em_hypercall_today,
    emulate_instruction_3_11,
    emulate_instruction_trap_ud,
    fix_hypercall_2_6_25,
    fix_hypercall_2_6_34,
    fix_hypercall_3_11,
    fix_hypercall_quirk_off,
    hypercall_mask_today,
    hypercall_result_cpl,
    hypercall_result_today,
    kvm_mmu_zap_all_2_6_25,
    no_exit_to_complete,
    page_fault_2_6_25,
    skip_emulated_instruction_today,
    write_emulated_2_6_25,
    write_emulated_3_11,
    write_emulated_today,
)
from actors.hypercall_mutants import (
    emulated_only,
    ipi_first,
    m3_write_first,
    m4_no_wait,
    m5_unlocked_write,
    m6_fault_unlocked,
    m9_skipped,
    m10_ud_locks,
    m11_efault,
    m12_mask,
    m13_result,
    not_dirty,
)
from actors.hypercall_page import (
    CASE_NAMES,
    HYPERCALL,
    PAGE_SIZE,
    OldGuest,
    ParaState,
    call_of,
    em_hypercall_nop,
    expected,
    guest_registers,
    handle_vmcall_before,
    handle_vmcall_documented,
    register_para_locked,
    register_para_unchecked,
    ud_goes_to_the_guest,
    vcpu_register_para,
)
from actors.hypercall_vmm import Migration, Userspace, delete_slot, poker, reader, rewriter, swapper
from actors.ops import IN_GUEST
from actors.ops import Code as OpCode
from actors.thread import Thread
from racevisor import Always, Claim, Monitor, Never, Scenario, Setup, Sometimes, Step, Variant, Violation, Vm, alike

# fmt: off
Table = dict[str, Callable[..., Any]]
BEFORE: Table = {
    "guest_boot": guest_registers, "ud_is_intercepted": ud_goes_to_the_guest, "handle_vmcall": handle_vmcall_before,
    "em_hypercall": em_hypercall_nop,
}
MMU_LOCK: Table = {
    "kvm_fix_hypercall": fix_hypercall_2_6_25, "kvm_mmu_page_fault": page_fault_2_6_25, "kvm_mmu_zap_all": kvm_mmu_zap_all_2_6_25,
    "emulator_write_emulated": write_emulated_2_6_25,
}
V2_6_25: Table = {**MMU_LOCK, "emulate_instruction": emulate_instruction_trap_ud}
V2_6_30: Table = {**V2_6_25, "em_hypercall": em_hypercall_2_6_30}
V2_6_32: Table = {**V2_6_30, "hypercall_result": hypercall_result_cpl}
V3_11: Table = {
    **V2_6_32, "kvm_fix_hypercall": fix_hypercall_3_11, "emulator_write_emulated": write_emulated_3_11,
    "emulate_instruction": emulate_instruction_3_11, "complete_hypercall": no_exit_to_complete,
}
TODAY: Table = {
    **V3_11, "em_hypercall": em_hypercall_today, "emulator_write_emulated": write_emulated_today,
    "hypercall_mask": hypercall_mask_today, "hypercall_result": hypercall_result_today,
    "skip_emulated_instruction": skip_emulated_instruction_today,
}

def sometimes(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups whose bad outcome is met on some schedules."""
    return dict.fromkeys(setups, Sometimes)

def always(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups that always go wrong."""
    return dict.fromkeys(setups, Always)
# fmt: on


def never(*setups: str) -> dict[str, Claim]:
    """The claim for set-ups in which what others do wrong is right."""
    return dict.fromkeys(setups, Never)


#: set-ups that go wrong because something is patched, or emulated
NO_PATCHING = ("emulator_fetch", "prefix_twice", "rewrite", "read_only", "other_ud", "cs_base", "poke", "ring3_zaps")
OLD: dict[str, Claim] = {
    **never(*NO_PATCHING), **sometimes("smp", "migration", "two_pages", "slot_removed", "precopy", "poke"), **always("mode32"),
}  # fmt: skip
#: nothing says to userspace why KVM_RUN returned, and the result is lost
UNEXPLAINED = always("first_call", "first_call_amd", "native", "user_mode")
SPLIT: dict[str, Claim] = {**sometimes("prefixed"), **never("rewrite")}  # no lock from the zap to the write
#: the model's answer, and right: set_bit() of the dirty log orders nothing, so it may be seen before the bytes; on x86 it may not
WEAK: dict[str, Claim] = {"precopy": {"pso": Sometimes}}
REEXECUTED: dict[str, Claim] = {**SPLIT, **never("other_ud", "first_call_amd")}
FIXED_TODAY: dict[str, Claim] = {
    **REEXECUTED, **never("first_call", "user_mode", "read_only", "compat", "mode32", "leftover", "ring3_zaps", "prefixed_amd"),
}  # fmt: skip

VARIANTS = {
    "before": Variant("a page registered by MSR and written once; #UD is the guest's",
                      BEFORE, {**OLD, **UNEXPLAINED}),
    "after": Variant("the patch as committed: every #UD is emulated, hypercalls are patched and run there"),
    "2.6.25": Variant("mmu_lock: no lock is held from the zap to the write; only hypercalls are emulated on #UD", V2_6_25,
                      {**SPLIT, **never("other_ud"), **WEAK}),
    "2.6.30": Variant("a patched vmcall is re-executed, a patched vmmcall is skipped", V2_6_30, REEXECUTED),
    "3.11": Variant("no zap any more; ring 0 only; the guest's page tables are asked, and a stale vector is injected", V3_11,
                    {**REEXECUTED, **never("user_mode", "leftover", "ring3_zaps"), **sometimes("straddle")}),
    "today": Variant("6.16: vmmcall is re-executed too; 32-bit code is told from 32-bit mode", TODAY,
                     {**FIXED_TODAY, **WEAK}),
    "quirk_off": Variant("6.16 with KVM_X86_QUIRK_FIX_HYPERCALL_INSN disabled: the wrong instruction is the guest's #UD",
                         {**TODAY, "kvm_fix_hypercall": fix_hypercall_quirk_off},
                         {**FIXED_TODAY, **never(*NO_PATCHING, "prefixed"), **sometimes("rewrite")},
                         {"H-L1": "userspace asked for it", "H-I2": "userspace asked for it"}),
    "H-M3": Variant("write before zap", {"kvm_fix_hypercall": m3_write_first}, sometimes("prefixed")),
    "H-M4": Variant("the flush does not wait for its IPIs", {"kvm_flush_remote_tlbs": m4_no_wait}, sometimes("prefixed")),
    "H-M5": Variant("the lock is dropped between zap and write", {"kvm_fix_hypercall": m5_unlocked_write},
                    sometimes("prefixed", "slot_removed", "precopy")),
    "H-M6": Variant("the page fault handler takes no lock", {"kvm_mmu_page_fault": m6_fault_unlocked}, SPLIT),
    "H-M9": Variant("today, and re-execution is forgotten: the hypercall is skipped", {**TODAY, "em_hypercall": m9_skipped},
                    {**FIXED_TODAY, **always("first_call", "first_call_amd")}),
    "H-M10": Variant("the #UD handler takes kvm->lock too", {"handle_ud": m10_ud_locks},
                     {**always("smp", "prefixed", "emulator_fetch", "straddle"), **sometimes("migration")}),
    "H-M11": Variant("today, and a failed write is -EFAULT, which injects nothing", {**TODAY, "kvm_fix_hypercall": m11_efault},
                     {**FIXED_TODAY, **always("read_only")}),
    "H-M12": Variant("inputs are masked to 32 bits, always", {"hypercall_mask": m12_mask}, always("native")),
    "H-M13": Variant("the hypercall's 0 is returned from the exit handler", {"handle_vmcall": m13_result}, always("native")),
    "not_dirty": Variant("the patched page is not marked dirty", {"mark_page_dirty": not_dirty},
                         sometimes("migration", "precopy")),
    "ipi_first": Variant("the flush sends its IPIs before it sets the requests", {"kvm_flush_remote_tlbs": ipi_first},
                         sometimes("prefixed")),
    "H-5": Variant("before, and KVM sets the exit reason that kvm.h documents",
                   {**BEFORE, "handle_vmcall": handle_vmcall_documented},
                   {**OLD, **never("first_call", "first_call_amd"), **sometimes("exit_lost")}),
    "msr_locked": Variant("before, and the MSR takes kvm->lock", {**BEFORE, "vcpu_register_para": register_para_locked},
                          {**OLD, **UNEXPLAINED, **never("slot_removed", "precopy")}),
    "msr_unchecked": Variant("before, and the MSR checks nothing", {**BEFORE, "vcpu_register_para": register_para_unchecked},
                             {**OLD, **UNEXPLAINED, **sometimes("register")}),
    "mmu_lock": Variant("10589a4699bb, aaee2c94f7a1: mmu_lock in place of kvm->lock", MMU_LOCK, SPLIT),
    "571008daccc1": Variant("only hypercalls are emulated on #UD", {"emulate_instruction": emulate_instruction_trap_ud},
                            never("other_ud")),
    "33e3885de251": Variant("2.6.25, and a patched vmcall is re-executed", {**V2_6_25, "em_hypercall": em_hypercall_2_6_26},
                            REEXECUTED),
    "07708c4af134": Variant("2.6.30, and hypercalls are ring 0's", V2_6_32, {**REEXECUTED, **never("user_mode")}),
    "7edcface95c6": Variant("2.6.32, and errors of the write are X86EMUL_*: nothing that a guest sees",
                            {**V2_6_32, "kvm_fix_hypercall": fix_hypercall_2_6_34}, {**REEXECUTED, **never("user_mode")}),
    "no_zap": Variant("2.6.30 without the zap", {**V2_6_30, "kvm_fix_hypercall": fix_hypercall_3_11},
                      {**REEXECUTED, **never("ring3_zaps")}),
    "no_patch": Variant("the hypercall is run in the emulator, and nothing is patched", {"em_hypercall": emulated_only},
                        {**sometimes("migration"), **never("first_call", "first_call_amd", "read_only", "cs_base", "rewrite",
                                                           "emulator_fetch", "ring3_zaps")}),
}  # fmt: skip
#: variants that are one change of a bigger one, or about one set-up: where they have cells besides the set-ups that name them
ELSEWHERE = {
    "H-5": ("first_call", "native", "compat", "leftover", "migration"),
    "mmu_lock": ("prefixed", "rewrite", "other_ud"),
    "571008daccc1": ("rewrite", "other_ud", "first_call"),
    "33e3885de251": ("first_call", "native", "other_ud"),
    "07708c4af134": ("user_mode", "native", "first_call"),
    "7edcface95c6": ("read_only", "straddle", "first_call"),
    "no_zap": ("smp", "prefixed"),
    "no_patch": ("first_call", "migration", "prefix_twice", "read_only", "cs_base"),
    "msr_locked": ("smp",),
    "msr_unchecked": (),
}


def cells(setup: str) -> tuple[str, ...]:
    """The variants that have cells in a set-up which names none."""
    return tuple(name for name in VARIANTS if name not in ELSEWHERE or setup in ELSEWHERE[name])


class WholeFetch(Monitor):
    """vCPUs fetch the whole old instruction or the whole new one; `emulator`: what KVM's emulator fetches for them is judged.

    Of few vCPUs each has one of these, for a search orders the steps on all that one looks at; many share one, for each step on
    a byte is shown to all that watch it.
    """

    check = "H-I1"

    def __init__(self, vcpus: list[HypercallVcpu], *, emulator: bool) -> None:
        self.text = vcpus[0].kvm.text[: vcpus[0].fetches]
        super().__init__(self.text, reads=[vcpu.pcpu.cpu for vcpu in vcpus], **{vcpu.name: () for vcpu in vcpus})
        self.cpus = {vcpu.name: vcpu.pcpu.cpu for vcpu in vcpus}
        self.emulator = emulator
        old = tuple(cell.init for cell in self.text)
        self.whole = (old, (*NATIVE[INTEL], *old[3:]))
        self.number: dict[Any, int] = {cell: nr for nr, cell in enumerate(self.text)}

    def on_step(self, step: Step) -> Violation | None:
        name, cpu = step.thread, self.cpus.get(step.thread)
        if step.kind or step.op.code != OpCode.LOAD or cpu is None or bool(cpu.value & IN_GUEST) == self.emulator:
            return None
        nr = self.number[step.cell]
        got = self.ghost[name] = (*self.ghost[name][:nr], step.result)
        self.where[f"{name}, byte {nr}"] = step.n
        if len(got) < len(self.text) or got in self.whole:
            return None
        who = "emulator" if self.emulator else "CPU"
        text = f"{name}'s {who} fetches {' '.join(got)}: neither old nor new"
        return Violation(self.check, text, tuple(self.where[f"{name}, byte {i}"] for i in range(len(got))))


class ShipsDirty(Monitor):
    """What the destination of a migration gets is what the source had."""

    check = "H-I5"

    def on_step(self, step: Step) -> Violation | None:
        if step.thread == "migration" and step.writes and step.before != step.after:
            assert step.cell is not None
            text = f"the destination gets {step.after} where the source had {step.before} in {step.cell.label}"
            return Violation(self.check, text, (step.n,))
        return None


class FreedPage(Monitor):
    """KVM does not write into a page that the host has freed."""

    check = "H-4"

    def __init__(self, kvm: Kvm, paras: list[ParaState]) -> None:
        super().__init__([*kvm.text, *(cell for para in paras for cell in (para.host_version, para.ret))], reads=[kvm.pages])
        self.pages = kvm.pages

    def on_step(self, step: Step) -> Violation | None:
        if not step.writes or self.pages.value != FREED:
            return None
        assert step.cell is not None
        return Violation(self.check, f"{step.cell.label} = {step.after} is written into a page that was freed", (step.n,))


PREFIXED = (OPERAND_SIZE, *VMMCALL)
#: text at the start, by set-up; the rest has AMD's instruction, and the host is Intel's
TEXT: dict[str, Code] = {
    "rewrite": ("89", *VMCALL[1:]), "other_ud": (LOCK_PREFIX, "89", "01"), "cs_base": (RET, RET, RET, *VMMCALL),
    **dict.fromkeys(("prefixed", "emulator_fetch", "prefix_twice", "prefixed_amd"), PREFIXED),
    **dict.fromkeys(("native", "compat", "mode32", "user_mode", "leftover", "exit_lost", "first_call_amd"), VMCALL),
}  # fmt: skip
RACES = ("smp", "prefixed", "emulator_fetch")
FIRST = 8  # vCPUs that come to the site at once
#: judged for registers; for where a hypercall ends, and how often it is #UD
REGISTERS = ("first_call", "first_call_amd", "native", "compat", "mode32", "user_mode", "leftover", "exit_lost", "prefixed_amd")
ENDS = ("smp", "straddle", "migration", "precopy", "prefix_twice", "poke")
#: a #UD of one site at one host; not where the guest puts the wrong byte back, or unmaps it before it is written
ONCE = ("smp", "migration", "precopy", "prefix_twice", "first_call", "first_call_amd")


class HypercallPatching(Scenario):
    """Two vCPUs or more, and one hypercall instruction, which is the other vendor's."""

    name = "hypercall_patching"
    patch = "7aa81cc04781 KVM: Refactor hypercall infrastructure (v3) (2007)"
    functions = {**HYPERCALL_FUNCTIONS, "vcpu_register_para": vcpu_register_para}
    max_steps = 2_000
    max_vcpus = 1024
    variants = VARIANTS
    setups = {
        "smp": Setup("both vCPUs make the same hypercall; before: vCPU0 registers its page, vCPU1 calls it meanwhile",
                     cells("smp")),
        "prefixed": Setup("as smp, and the instruction has an operand-size prefix; what the guest fetches is judged",
                          cells("prefixed")),
        "emulator_fetch": Setup("as prefixed; what the emulator fetches is judged", cells("emulator_fetch")),
        "straddle": Setup("one vCPU, the last byte is on another page, which another CPU of the guest unmaps and maps",
                          cells("straddle")),
        "prefix_twice": Setup("one vCPU executes the prefixed instruction twice", cells("prefix_twice")),
        "migration": Setup("two hypercalls of one vCPU, which is moved from an Intel host to an AMD host meanwhile",
                           cells("migration")),
        "precopy": Setup("as migration, to another Intel host, and the dirty log is taken once while the guest runs",
                         ("before", "after", "2.6.25", "today", "H-M5", "not_dirty")),
        "rewrite": Setup("vCPU0's store to a device is emulated while vCPU1 rewrites that instruction into a hypercall",
                         cells("rewrite")),
        "poke": Setup("vCPU1 puts int3 over the hypercall that vCPU0 executes: it must stay, and be all that vCPU0 traps on",
                      ("before", "after", "2.6.30", "today", "quirk_off", "H-M10", "no_patch")),
        "first_call": Setup("one vCPU, 64-bit, a hypercall that must be patched: registers", cells("first_call")),
        "first_call_amd": Setup("as first_call, a vmcall on an AMD host",
                                ("before", "H-5", "after", "2.6.25", "33e3885de251", "2.6.30", "today", "H-M9", "no_patch")),
        "prefixed_amd": Setup("one vCPU, 64-bit, a prefixed vmmcall on an AMD host: registers", ("after", "today")),
        "native": Setup("one vCPU, 64-bit, a hypercall in the host's own instruction: registers", cells("native")),
        "compat": Setup("as native, from a 32-bit process under a 64-bit kernel", cells("compat")),
        "mode32": Setup("as native, and the vCPU is not in long mode", ("before", "H-5", "after", "2.6.30", "3.11", "today")),
        "user_mode": Setup("as native, from ring 3", cells("user_mode")),
        "read_only": Setup("one vCPU, and the guest's page tables map its text read-only", cells("read_only")),
        "other_ud": Setup("one vCPU executes an invalid instruction that is no hypercall (a locked mov)", cells("other_ud")),
        "cs_base": Setup("one vCPU runs 16-bit code whose code segment does not start at 0", cells("cs_base")),
        "leftover": Setup("as native, and userspace left KVM_EXIT_HYPERCALL in the exit reason", cells("leftover")),
        "exit_lost": Setup("as native, and the vCPU is moved to another Intel host at any time",
                           ("H-5", "after", "today")),
        "ring3_zaps": Setup("a ring-3 program executes the wrong instruction twice, and puts it back in between",
                            ("before", "after", "2.6.25", "no_zap", "today", "no_patch")),
        "register": Setup("before: one vCPU registers any of five para_states: good, or bad in one of four ways",
                          ("before", "H-5", "msr_locked", "msr_unchecked")),
        "two_pages": Setup("before: each vCPU registers a page of its own unless it sees that there is one; all call the last",
                           ("before", "msr_locked", "after")),
        "slot_removed": Setup("userspace takes the memory slot away while KVM writes the instruction",
                              ("before", "msr_locked", "after", "H-M5")),
    }  # fmt: skip
    #: what the patch as committed does, and with it whatever does not fix it
    claims = {
        **sometimes("emulator_fetch", "rewrite", "poke"),
        **always("prefix_twice", "first_call", "first_call_amd", "compat", "mode32", "user_mode", "read_only", "other_ud",
                 "cs_base", "leftover", "ring3_zaps", "prefixed_amd"),
    }  # fmt: skip

    def build(self, vm: Vm, setup: str) -> None:
        """vCPU0, and vCPU1 where there is a race."""
        old = vm.calls.guest_boot is guest_registers and setup not in ("rewrite", "other_ud", "poke", "ring3_zaps")
        pages = vm.size if setup == "two_pages" else 1  # that an old guest registers
        text = (INT3,) * 4 * pages if old else TEXT.get(setup, VMMCALL)
        kvm = Kvm(vm, text, host=AMD if setup.endswith("_amd") else INTEL, writable=setup != "read_only",
                  straddles=setup == "straddle" and not old, removable=setup == "slot_removed")  # fmt: skip
        pointer = kvm.pointer if setup == "two_pages" else None
        wide = text[0] == OPERAND_SIZE
        end = 2 if setup == "rewrite" else 4 if setup in ("prefix_twice", "prefixed_amd") and wide else 3
        rounds = 2 if setup in ("prefix_twice", "migration", "precopy", "ring3_zaps") else 1
        paras = []
        for i in range(vm.size if setup in ("smp", "two_pages") or (setup in RACES and not old) else 1):  # no prefix in the page
            vcpu = HypercallVcpu(vm, kvm, i, rounds=rounds, end=end, fetches=4 if wide else 3)
            vcpu.old_abi, vcpu.registers = old, old and not (setup == "smp" and i > 0)
            vcpu.long_mode, vcpu.code64 = setup != "mode32", setup not in ("mode32", "compat")
            vcpu.cpl = 3 if setup in ("user_mode", "ring3_zaps") else 0
            vcpu.restores = VMMCALL[2] if setup == "ring3_zaps" else ""
            vcpu.cs_base = 3 if setup == "cs_base" and not old else 0
            vcpu.private(migrates=setup in ("migration", "precopy", "exit_lost"),
                         exit_reason=KVM_EXIT_HYPERCALL if setup == "leftover" else 0)  # fmt: skip
            paras.append(ParaState(vm, f"para{i}", HYPERCALL + i * PAGE_SIZE * (setup == "two_pages")))
            vcpu.old_guest = OldGuest(paras[i], pointer, chooses=setup == "register")
        if not old:
            self.bring_up(self.vcpus_of(vm))
        if setup in ("migration", "precopy", "exit_lost"):
            ships = {TEXT_PAGE: kvm.text[:3], PARA_PAGE: [paras[0].host_version, paras[0].ret] if old else []}
            Migration(vm, kvm, AMD if setup == "migration" else INTEL, ships, int(setup == "precopy"))
        others = {"rewrite": rewriter, "straddle": swapper, "read_only": reader, "cs_base": reader, "poke": poker}
        if setup in others:
            Thread(vm, "vcpu1", others[setup])
        if setup == "slot_removed":
            Userspace(vm, "userspace", delete_slot)

    def bring_up(self, vcpus: list[HypercallVcpu]) -> None:
        """The first few come to the site at once, and each that is done brings up two more.

        Each vCPU that takes the #UD has all others flushed: if all of them came at once, that would be a flush of all by all.
        The later ones fetch while the first ones still zap and write.
        """
        for i, vcpu in enumerate(vcpus[FIRST:]):
            assert vcpu.kvm.vm.memory is not None
            vcpu.up = vcpu.kvm.vm.memory.cell(f"up{vcpu.id}", False)
            vcpus[i // 2].brings_up.append(vcpu.up)

    def vcpus_of(self, vm: Vm) -> list[HypercallVcpu]:
        """The vCPUs that execute hypercalls."""
        return [actor for actor in vm.actors if isinstance(actor, HypercallVcpu) and vm.in_question(actor)]

    def monitors(self, vm: Vm) -> list[Monitor]:
        """Safety."""
        (kvm,) = (actor for actor in vm.actors if isinstance(actor, Kvm))
        if vm.setup in ("migration", "precopy"):
            return [ShipsDirty(actor.cells) for actor in vm.actors if isinstance(actor, Migration)]
        if vm.setup == "slot_removed":
            return [FreedPage(kvm, [actor for actor in vm.actors if isinstance(actor, ParaState)])]
        emulator = vm.setup == "emulator_fetch"
        vcpus = self.vcpus_of(vm) if vm.setup in RACES else []
        together = [[v] for v in vcpus] if len(vcpus) <= self.vcpus else [vcpus]
        return [WholeFetch(those, emulator=emulator) for those in together]

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
        if setup in ENDS and vcpu.fault not in ("", "#BP"):
            yield "H-L1", f" makes a hypercall, and its guest takes {vcpu.fault}"
        if setup in ONCE and vcpu.uds > 1:
            yield "H-L1", " takes #UD more than once at one site of one host"
        if setup in REGISTERS:
            yield from self.wrong_registers(vcpu)
        if setup == "other_ud" and vcpu.fault != "#UD":
            yield "H-I6", " executes an invalid instruction, and KVM emulates it"
        if (setup == "rewrite" and vcpu.fault) or (setup == "read_only" and vcpu.fault not in ("", "#UD", "#PF")):
            yield "H-I6", f" executes a {'store' if setup == 'rewrite' else 'hypercall'}, and its guest takes {vcpu.fault}"
        if setup in ("cs_base", "read_only") and not vcpu.registers:
            around = text[:3] if setup == "cs_base" else text
            yield from (("H-I3", f"'s KVM changes {cell.label}") for cell in around if cell.value != cell.init)
        if setup == "poke" and text[0].value != INT3:
            yield "H-I3", f"'s KVM writes {text[0].value} over an int3"
        if setup == "ring3_zaps" and vcpu.zaps > 1:
            yield "cost", " has all mappings zapped from ring 3, each time it likes"
        if setup == "two_pages" and vcpu.old_abi and vcpu.hypercall_gpa != HYPERCALL + vcpu.site // 4 * PAGE_SIZE:
            knows = f"{vcpu.hypercall_gpa:#x}" if vcpu.hypercall_gpa else "none"
            yield "H-3", f" calls the page at {HYPERCALL + vcpu.site // 4 * PAGE_SIZE:#x}, and KVM has {knows} for it"
        if setup == "register":
            para = vcpu.old_guest.para
            got = (vcpu.fault, para.host_version.value, para.ret.value, vcpu.hypercall_gpa, vcpu.kvm.dirty.value)
            if got != (wanted := expected(vcpu)):
                yield "H-I8", f" registers {CASE_NAMES[vcpu.chosen]}: (fault, versions, ret, page, dirty) {got} for {wanted}"

    def wrong_registers(self, vcpu: HypercallVcpu) -> Iterator[tuple[str, str]]:
        """What one hypercall did to the guest's registers."""
        call = call_of(vcpu)
        answer = -EINVAL_OLD if vcpu.old_abi else -KVM_EPERM if vcpu.cpl else -KVM_ENOSYS
        if not vcpu.code64:
            answer &= LOW32
        if vcpu.fault:
            yield "H-I2", f" makes a hypercall, and its guest takes {vcpu.fault}"
        elif not vcpu.inputs:
            yield "H-I2", "'s hypercall is skipped"
        elif vcpu.inputs != call:
            yield "H-I2", f"'s hypercall has {vcpu.inputs[0]:#x}({vcpu.inputs[1]:#x}) for {call[0]:#x}({call[1]:#x})"
        elif vcpu.results != (answer,):
            yield "H-I2", f"'s hypercall leaves RAX = {vcpu.results[0]} for {answer}"
        elif (vcpu.rbx, vcpu.rdi, vcpu.rip) != (*vcpu.loaded[1:], vcpu.end):
            yield "H-I2", f"'s hypercall leaves RBX = {vcpu.rbx:#x}, RDI = {vcpu.rdi:#x}, RIP + {vcpu.rip}"
        if vcpu.unexplained:
            yield "H-I7", "'s KVM_RUN returns to userspace and has set no exit reason"

    def outcome(self, vm: Vm) -> str:
        """What each vCPU got."""
        return alike(
            (v.name, f" {v.fault or ('RAX ' + ', '.join(map(str, v.results)) if v.finished else 'waits')}")
            for v in self.vcpus_of(vm)
        )
