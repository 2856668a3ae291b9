"""The local APIC at register level, and what of a vCPU and of a VM its code touches: cells.  [arch/x86/kvm/lapic.h, kvm_host.h]

actors.lapic has what INIT and SIPI need and nothing more; this one has every register.  The two share the functions that are the
same.  Registers are named by their offset in the xAPIC page; MSR 0x800 + offset/16 is the same register in x2APIC mode.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, ClassVar

from actors.actor import Actor, Cell
from actors.ops import READ_ONCE, WRITE_ONCE
from actors.pcpu import Pcpu
from actors.requests import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, OUTSIDE_GUEST_MODE
from actors.sync import TASK_RUNNING, Lock

# ---- registers [arch/x86/include/asm/apicdef.h] -----------------------------------------------------------------------------

APIC_ID, APIC_LVR, APIC_TASKPRI, APIC_ARBPRI, APIC_PROCPRI, APIC_EOI = 0x20, 0x30, 0x80, 0x90, 0xA0, 0xB0
APIC_LDR, APIC_DFR, APIC_SPIV, APIC_ISR, APIC_TMR, APIC_IRR, APIC_ESR = 0xD0, 0xE0, 0xF0, 0x100, 0x180, 0x200, 0x280
APIC_LVTCMCI, APIC_ICR, APIC_ICR2 = 0x2F0, 0x300, 0x310
APIC_LVTT, APIC_LVTTHMR, APIC_LVTPC, APIC_LVT0, APIC_LVT1, APIC_LVTERR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
APIC_TMICT, APIC_TMCCT, APIC_TDCR, APIC_SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0
#: x2APIC mode keeps the high half of the ICR right after the low one; xAPIC mode has ICR2.  KVM_GET_LAPIC shows both at ICR2.
APIC_ICR_HIGH = APIC_ICR + 4

LVT = (APIC_LVTT, APIC_LVTTHMR, APIC_LVTPC, APIC_LVT0, APIC_LVT1, APIC_LVTERR, APIC_LVTCMCI)  # in the order of APIC_LVTx()

APIC_VECTOR_MASK, APIC_MODE_MASK, APIC_DEST_LOGICAL = 0xFF, 0x700, 0x800
APIC_ICR_BUSY, APIC_INT_ASSERT, APIC_INT_LEVELTRIG, APIC_SHORT_MASK = 0x1000, 0x4000, 0x8000, 0xC0000
#: the bits of the ICR whose setting is #GP in x2APIC mode: 13, 16, 17, 20 to 31
X2APIC_ICR_RESERVED_BITS = 0xFFF3_2000
APIC_LVT_MASKED, APIC_LVT_LEVEL_TRIGGER = 0x10000, 0x8000
APIC_SPIV_APIC_ENABLED, APIC_SPIV_DIRECTED_EOI, APIC_LVR_DIRECTED_EOI = 0x100, 0x1000, 0x1000000
APIC_LDR_MASK, APIC_DFR_FLAT, APIC_DFR_CLUSTER = 0xFF000000, 0xFFFFFFFF, 0x0FFFFFFF
APIC_LVT_TIMER_ONESHOT, APIC_LVT_TIMER_PERIODIC, APIC_LVT_TIMER_TSCDEADLINE = 0, 0x20000, 0x40000
APIC_LVT_TIMER_MODES = 0x60000
APIC_VERSION = 0x14
APIC_MODE_EXTINT_LVT = 0x700  # LINT0 of the BSP after a reset, quirk LINT0_REENABLED

_LVT_MASK = APIC_LVT_MASKED | 0x1000 | APIC_VECTOR_MASK
_LINT_MASK = _LVT_MASK | APIC_MODE_MASK | 0x2000 | 0x4000 | APIC_LVT_LEVEL_TRIGGER
#: the bits of each LVT register that can be written  [lapic.c apic_lvt_mask]
APIC_LVT_WRITABLE = {
    APIC_LVTT: _LVT_MASK | APIC_LVT_TIMER_MODES,
    APIC_LVTTHMR: _LVT_MASK | APIC_MODE_MASK,
    APIC_LVTPC: _LVT_MASK | APIC_MODE_MASK,
    APIC_LVT0: _LINT_MASK,
    APIC_LVT1: _LINT_MASK,
    APIC_LVTERR: _LVT_MASK,
    APIC_LVTCMCI: _LVT_MASK | APIC_MODE_MASK,
}

MSR_IA32_APICBASE_BSP, X2APIC_ENABLE, MSR_IA32_APICBASE_ENABLE = 0x100, 0x400, 0x800
APIC_DEFAULT_PHYS_BASE = 0xFEE00000
#: IA32_APIC_BASE: bits that no mode has, and those above 46 physical address bits
APIC_BASE_RESERVED = 0x2FF | ~((1 << 46) - 1)

#: delivery modes, as in bits 10:8 of the ICR; fixed, NMI, INIT and startup are in actors.guest
APIC_DM_LOWEST, APIC_DM_SMI, APIC_DM_REMRD, APIC_DM_EXTINT = 1, 2, 3, 7

ALL_VECTORS = range(256)
RESET_CS, RESET_IP = 0xF000, 0xFFF0


class LocalApic(Actor):
    """struct kvm_lapic of one vCPU: cells only; what its vCPU alone remembers of it, isr_count and the like, is private there.

    `vectors`: the fixed vectors that may ever be sent to it; only the words of IRR, ISR and TMR that hold one of them exist.
    `lvt_entries`: 6, or 7 with LVT CMCI.  `apic_id`: of xAPIC mode; `enabled`: by software, which a reset does not leave it.
    """

    vcpu: ApicVcpu

    def __init__(
        self,
        vm: Any,
        name: str,
        vectors: Iterable[int] = ALL_VECTORS,
        lvt_entries: int = 6,
        *,
        apic_id: int = 0,
        enabled: bool = False,
    ) -> None:
        super().__init__(vm, name)
        self.regs = tuple(sorted({v >> 5 for v in vectors}, reverse=True))  # words, scanned from the highest down
        self.irr = {r: self.cell(f"irr{r}") for r in self.regs}
        self.tmr = {r: self.cell(f"tmr{r}") for r in self.regs}
        self.isr = {r: self.cell(f"isr{r}") for r in self.regs}
        self.irr_pending = self.cell("irr_pending", True)
        self.pending_events = self.cell("pending_events")
        self.sipi_vector = self.cell("sipi_vector")
        self.sw_enabled = self.cell("sw_enabled", enabled)
        self.apic_arb_prio = self.cell("apic_arb_prio")  # of the vCPU, in C
        self.lvt = LVT[:lvt_entries]
        start = {
            APIC_LVR: APIC_VERSION | (lvt_entries - 1) << 16 | APIC_LVR_DIRECTED_EOI,
            APIC_DFR: APIC_DFR_FLAT,
            APIC_SPIV: 0x1FF if enabled else 0xFF,
            APIC_ID: apic_id << 24,
            **dict.fromkeys(self.lvt, APIC_LVT_MASKED),
        }
        self.reg = {offset: self.cell(REGISTER_NAMES[offset], start.get(offset, 0)) for offset in (*_PLAIN, *self.lvt)}
        self.timer: Any = None  # actors.apic_timer.ApicTimer, if the guest uses it


_PLAIN = (
    APIC_ID, APIC_LVR, APIC_TASKPRI, APIC_PROCPRI, APIC_LDR, APIC_DFR, APIC_SPIV, APIC_ESR, APIC_ICR, APIC_ICR_HIGH, APIC_ICR2,
    APIC_TMICT, APIC_TDCR,
)  # fmt: skip
REGISTER_NAMES = {
    APIC_ID: "id", APIC_LVR: "version", APIC_TASKPRI: "tpr", APIC_PROCPRI: "ppr", APIC_LDR: "ldr", APIC_DFR: "dfr",
    APIC_SPIV: "spiv", APIC_ESR: "esr", APIC_ICR: "icr", APIC_ICR_HIGH: "icr_high", APIC_ICR2: "icr2", APIC_LVTT: "lvtt",
    APIC_LVTTHMR: "lvtthmr", APIC_LVTPC: "lvtpc", APIC_LVT0: "lvt0", APIC_LVT1: "lvt1", APIC_LVTERR: "lvterr",
    APIC_LVTCMCI: "lvtcmci", APIC_TMICT: "tmict", APIC_TDCR: "tdcr",
}  # fmt: skip


class ApicVcpu(Actor):
    """What of a vCPU its APIC needs: requests, mp_state, events, CS:IP and IF; a thread if it has a `body`.

    Private: `nmi_pending`, `nmi_injected`, `nmi_masked` and `interrupt` (the vector acked and not yet delivered, or -1) as
    KVM_GET_VCPU_EVENTS shows them.  What the body needs besides is given as keywords.
    """

    def __init__(
        self,
        kvm: ApicKvm,
        vcpu_id: int,
        apic: LocalApic,
        body: Callable[[Any], Coroutine[Any, Any, Any]] | None = None,
        **private: Any,
    ) -> None:
        super().__init__(kvm.vm, f"vcpu{vcpu_id}")
        self.kvm = kvm
        self.id = vcpu_id
        self.is_bsp = not kvm.vcpus
        self.index = len(kvm.vcpus)
        self.apic = apic
        apic.vcpu = self
        kvm.vcpus.append(self)
        self.pcpu = Pcpu(kvm.vm, f"pcpu{vcpu_id}")
        self.body = body
        self.mode = self.cell("mode", OUTSIDE_GUEST_MODE)
        self.requests = self.cell("requests", 0)
        self.wait_task = self.cell("wait_task", False)
        self.task_state = self.cell("task_state", TASK_RUNNING)
        self.mp_state = self.cell("mp_state", KVM_MP_STATE_RUNNABLE if self.is_bsp else KVM_MP_STATE_UNINITIALIZED)
        self.apic_base = self.cell(
            "apic_base", APIC_DEFAULT_PHYS_BASE | MSR_IA32_APICBASE_ENABLE | (MSR_IA32_APICBASE_BSP if self.is_bsp else 0)
        )
        self.pv_unhalted = self.cell("pv_unhalted", False)
        self.nmi_queued = self.cell("nmi_queued", 0)
        self.nmi_pending: int
        self.nmi_injected: bool
        self.nmi_masked: bool
        self.interrupt: int
        self.if_flag: bool
        self.cs: int
        self.ip: int
        self.isr_count: int  # struct kvm_lapic, touched by this thread alone
        self.highest_isr_cache: int
        self.private(nmi_pending=0, nmi_injected=False, nmi_masked=False, interrupt=-1, if_flag=False, cs=RESET_CS, ip=RESET_IP)
        self.private(isr_count=0, highest_isr_cache=-1, **private)

    def run(self) -> Coroutine[Any, Any, Any] | None:
        """The thread."""
        return self.body(self) if self.body is not None else None


class ApicKvm(Actor):
    """struct kvm, as far as interrupts go: the vCPUs, the map of their APICs, and what KVM_CAP_X2APIC_API has set.

    `apic_map`: the map at the start, an actors.apic_map.ApicMap as a plain tuple; None: no map can be used.
    """

    value_names: ClassVar[Mapping[str, Mapping[Any, str]]] = {"apic_map_dirty": {0: "CLEAN", 1: "UPDATE_IN_PROGRESS", 2: "DIRTY"}}

    def __init__(
        self,
        vm: Any,
        name: str = "kvm",
        *,
        x2apic_format: bool = False,
        x2apic_broadcast_quirk_disabled: bool = False,
        apic_map: tuple[Any, ...] | None = None,
    ) -> None:
        super().__init__(vm, name)
        self.vcpus: list[ApicVcpu] = []
        self.x2apic_format = x2apic_format
        self.x2apic_broadcast_quirk_disabled = x2apic_broadcast_quirk_disabled
        self.apic_map = self.cell("apic_map", apic_map)
        self.apic_map_dirty = self.cell("apic_map_dirty", 0)
        self.apic_map_lock_word = self.cell("apic_map_lock", "")
        self.apic_map_lock = Lock(self.apic_map_lock_word)


# ---- reading and writing a register: one access -----------------------------------------------------------------------------


async def kvm_lapic_get_reg(apic: LocalApic, offset: int) -> int:
    """Load a register.  [lapic.h]"""
    value: int = await READ_ONCE(apic.reg[offset])
    return value


async def kvm_lapic_set_reg(apic: LocalApic, offset: int, value: int) -> None:
    """Store a register.  [lapic.c]"""
    await WRITE_ONCE(apic.reg[offset], value)


async def apic_x2apic_mode(apic: LocalApic) -> bool:
    """Is it in x2APIC mode?  [lapic.h]"""
    return bool(await READ_ONCE(apic.vcpu.apic_base) & X2APIC_ENABLE)


async def kvm_apic_hw_enabled(apic: LocalApic) -> bool:
    """IA32_APIC_BASE says that it is on.  [lapic.h; kvm_apic_present() is the same for a vCPU that has one]"""
    return bool(await READ_ONCE(apic.vcpu.apic_base) & MSR_IA32_APICBASE_ENABLE)


async def kvm_apic_sw_enabled(apic: LocalApic) -> bool:
    """SVR says that it is on.  [lapic.h]"""
    return bool(await READ_ONCE(apic.sw_enabled))


async def apic_enabled(apic: LocalApic) -> bool:
    """Both of them.  [lapic.c]"""
    return await kvm_apic_sw_enabled(apic) and await kvm_apic_hw_enabled(apic)


async def apic_test_vector(word: Cell, vector: int) -> bool:
    """Is the bit of `vector` set in its word?  [lapic.c]"""
    return bool(await READ_ONCE(word) >> (vector & 31) & 1)


def cells_missing(apic: LocalApic, vector: int) -> ValueError:
    """The error for a vector that the machine was made without."""
    return ValueError(
        f"vector {vector:#x} is sent to {apic.name}, whose machine was made without it\n"
        f"  name every vector that may be sent:  LocalApic(vm, name, vectors=({vector:#x},))"
    )


def kvm_apic_calc_x2apic_ldr(x2apic_id: int) -> int:
    """The logical id that x2APIC mode derives from the id: cluster in 31:16, one bit of 16.  [lapic.c]"""
    return x2apic_id >> 4 << 16 | 1 << (x2apic_id & 0xF)
