"""Random sequences of operations on local APICs, with the features and the mix of the recorded ones.

What comes out is a function of the seed and the number alone: it asks no machine, so an xAPIC store is preceded by a `look`, and
whoever plays the sequence leaves the store out if the vCPU turns out not to run.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

LONGEST = 40
FEE = 0xFEE00000
BSP, ENABLED, EXTD = 0x100, 0x800, 0x400
FLAT, CLUSTER = 0xFFFFFFFF, 0x0FFFFFFF
MASKED = 0x10000
RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, SIPI_RECEIVED = range(5)
FIXED, LOWEST, SMI, REMRD, NMI, INIT, STARTUP, EXTINT = range(8)

# Registers, by offset.
TPR, EOI, LDR, DFR, SVR, ESR, ICR, ICR2, SELF_IPI = 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x3F0
LVT = (0x330, 0x340, 0x350, 0x360, 0x370)  # without the timer: what it does depends on when
ODD = (0x20, 0x30, 0x40, 0x90, 0xA0, 0x100, 0x180, 0x200, 0x290, 0x390, 0x3E0)  # read-only, missing, or without effect
ODD_X2APIC = (LDR, DFR, ICR2)

# Few vectors, several of a class, so that priorities and hashes collide.
VECTORS = (0x31, 0x32, 0x35, 0x41, 0x4F, 0x51, 0x80, 0xA1, 0xEF, 0xFE)
SIPI_VECTORS = (0x01, 0x08, 0x10, 0x9F, 0xFF)


def generate(seed: int, number: int, *, swarm: bool = False) -> dict[str, Any]:
    """Sequence `number` of `seed`, in the recorded format, without results.  The same in every process.

    With `swarm` each sequence has a mix of its own, some kinds of operations often and others never, and odd values: rare
    combinations become common in some sequence or other.  Groce et al., "Swarm Testing", ISSTA 2012.
    """
    return _Draft(Random(f"{seed}:{number}{':swarm' * swarm}"), number, swarm).sequence()


def operations(sequence: dict[str, Any]) -> list[list[Any]]:
    """The bare operations of a sequence, recorded or not."""
    return [entry["op"] for entry in sequence["ops"]]


class _Draft:
    """One sequence on its way."""

    def __init__(self, rng: Random, number: int, swarm: bool) -> None:
        self.rng, self.number, self.swarm = rng, number, swarm
        self.feat: set[str] = set()
        self.ops: list[list[Any]] = []
        self.mode = rng.choices(("x2apic", "xapic", "mixed"), (1, 1, 2) if swarm else (61, 22, 17))[0]
        self.n = rng.choices((1, 2, 3, 4, 6, 8), (19, 31, 34, 16, *((20, 20) if swarm else (0, 0))))[0]
        self.api = rng.choices((0, 1, 2, 3), (4, 2, 1, 2) if swarm else (85, 4, 5, 6))[0]
        self.ids = self._ids()
        self.bases = self._bases()
        self.ldrs, self.dfrs = self._logical()
        if self.api:
            self.feat.add(f"api{self.api}")
        if self.mode == "mixed":
            self.feat.add("mixed")
        kinds = self._kinds()
        self.kinds = [kind for kind, _ in kinds]
        self.weights = [weight * (rng.choice((0, 0, 1, 4)) if swarm else 1) for _, weight in kinds]
        self.weights[0] = self.weights[0] or 1  # something is always there to be chosen

    def sequence(self) -> dict[str, Any]:
        init = [self._init(v) for v in range(self.n)]
        length = self.rng.randint(4, LONGEST + 4)
        while len(self.ops) < length:
            self._one()
        self.ops += [["look", v] for v in range(self.n)]
        return {
            "seq": self.number,
            "mode": self.mode,
            "n": self.n,
            "ids": self.ids,
            "api": self.api,
            "feat": sorted(self.feat),
            "init": init,
            "ops": [{"op": op} for op in self.ops[:LONGEST]],
        }

    # The start

    def _ids(self) -> list[int]:
        if self._one_in(3 if self.swarm else 7):
            self.feat.add("sparse_ids")
            # An xAPIC's id has 8 bits: above them, two may have the same.
            most = self.rng.choice((16, 48, 256, 512) if self.mode == "x2apic" or self.swarm else (16, 48))
            return [0, *sorted(self.rng.sample(range(1, most), self.n - 1))]
        return list(range(self.n))

    def _bases(self) -> list[int]:
        bases = []
        for v in range(self.n):
            x2apic = self.mode == "x2apic" or (self.mode == "mixed" and self._one_in(3))
            bases.append(FEE | ENABLED | (EXTD if x2apic else 0) | (BSP if v == 0 else 0))
        return bases

    def _logical(self) -> tuple[list[int], list[int]]:
        """LDR and DFR of xAPICs: flat, clusters, both at once, or never set."""
        model = self.rng.choices(("flat", "cluster", "both", "unset"), (44, 36, 11, 9))[0]
        ldrs, dfrs = [], []
        for v in range(self.n):
            flat = model in ("flat", "unset") or (model == "both" and self._one_in(2))
            place = 1 << v if flat or model == "both" else (v // 2) << 4 | 1 << v % 2
            ldrs.append(0 if model == "unset" else place << 24)
            dfrs.append(FLAT if flat else CLUSTER)
        if self.mode != "x2apic":
            self.feat |= {"flat" if dfr == FLAT else "cluster" for dfr in dfrs}
        return ldrs, dfrs

    def _init(self, v: int) -> dict[str, Any]:
        apic_id, base = self.ids[v], self.bases[v]
        x2apic = bool(base & EXTD)
        runs = v == 0 or not self._one_in(2)
        # In x2APIC mode a tenth starts software-disabled; KVM_SET_LAPIC then finds every LVT masked.
        enabled = not self._one_in(16)
        lint0 = 0x700 if v == 0 else MASKED
        if x2apic and not enabled:
            lint0 |= MASKED
        return {
            **{name: [] for name in ("irr", "isr", "tmr")},
            **dict.fromkeys(("tpr", "ppr"), 0),
            "svr": 0x1FF if enabled else 0xFF,
            "ldr": (apic_id >> 4) << 16 | 1 << (apic_id & 0xF) if x2apic else self.ldrs[v],
            "dfr": FLAT if x2apic else self.dfrs[v],
            "esr": 0,
            "icr": 0,
            "lvt": [MASKED, MASKED, MASKED, lint0, MASKED, MASKED],
            "nmi": [0, 0, 0],
            "inj": -1,
            "linit": 0,
            "id": apic_id if x2apic and self.api & 1 else apic_id << 24 & 0xFFFFFFFF,
            "base": base,
            "mp": RUNNABLE if runs else UNINITIALIZED,
            "cs": 0 if runs else 0xF000,
            "ip": 0x1000 if runs else 0xFFF0,
            "if": int(runs and not self._one_in(12)),
        }

    # Operations

    def _one(self) -> None:
        """One operation, or one of the little stories that single operations hardly ever tell."""
        self.rng.choices(self.kinds, self.weights)[0]()

    def _kinds(self) -> tuple[tuple[Callable[[], None], float], ...]:
        return (
            (self._ipi, 27),
            (self._eoi, 5),
            (self._tpr, 3.5),
            (self._self_ipi, 3.2),
            (self._svr, 1),
            (self._lvt, 1.2),
            (self._odd, 1.3),
            (self._logical_id, 2),
            (self._msi, 12),
            (lambda: self._on("ack"), 16),
            (lambda: self._on("step"), 3),
            (lambda: self._on("look"), 8),
            (lambda: self._on("nmi"), 2),
            (lambda: self._on("iret"), 1.5),
            (lambda: self._on("if", self.rng.randrange(2) | self.rng.randrange(2)), 3),
            (self._setmp, 1.2),
            (self._sipivec, 0.25),
            (self._base, 2.2),
            (self._halt, 1.6),
            (self._halt_masked, 0.8),
            (self._restart, 1.4),
            (self._nest, 0.8),
        )

    def _wr(self, v: int, *stores: tuple[int, int]) -> None:
        if not self._x2apic(v) and self.bases[v] & ENABLED:
            self.ops.append(["look", v])
        self.ops += [["wr", v, offset, value] for offset, value in stores]

    def _ipi(self) -> None:
        v = self._vcpu()
        x2apic = self._x2apic(v)
        low = self._command() | self.rng.choices((0, 1, 2, 3), (70, 10, 8, 12))[0] << 18
        if x2apic and self._one_in(60):
            self.feat.add("reserved_bits")
            low |= 1 << self.rng.choice((13, 16, 17, *range(20, 32)))
        if self._one_in(50):
            low |= 1 << 12  # the busy bit
        logical = self._one_in(3)
        low |= logical << 11
        if low >> 18 & 3:
            self._wr(v, (ICR, low))
        elif x2apic:
            self._wr(v, (ICR, self._destination(logical, wide=True) << 32 | low))
        else:
            self._wr(v, (ICR2, self._destination(logical, wide=False) << 24), (ICR, low))

    def _command(self) -> int:
        """Vector, delivery mode, assert and trigger of an IPI or an MSI."""
        mode = self.rng.choices(range(8), (60, 11, 1, 0.5, 7, 8, 12, 1.2))[0]
        vector = self._vector() if mode in (FIXED, LOWEST, REMRD, EXTINT) else 0
        if mode == STARTUP:
            vector = self._sipi_vector()
        elif mode in (NMI, INIT) and self._one_in(20):
            vector = self._vector()  # which nobody looks at
        low = mode << 8 | vector | 1 << 14
        if self._one_in(20):
            self.feat.add("deassert")
            low &= ~(1 << 14)
        if self._one_in(14):
            self.feat.add("level")
            low |= 1 << 15
        named = {LOWEST: "lowest", SMI: "smi", REMRD: "remrd", EXTINT: "extint"}.get(mode)
        if named:
            self.feat.add(named)
        return low

    def _msi(self) -> None:
        logical = self._one_in(4)
        destination = self._destination(logical, wide=bool(self.api & 1))
        address = FEE | (destination & 0xFF) << 12 | logical << 2 | (destination & ~0xFF) << 32
        if self._one_in(7):
            self.feat.add("redir_hint")
            address |= 1 << 3
        self.ops.append(["msi", address, self._command()])

    def _destination(self, logical: bool, *, wide: bool) -> int:
        """Whom an interrupt is for: mostly somebody, sometimes nobody, everybody, or a set."""
        if self._one_in(15):
            return 0xFFFFFFFF if wide and self._one_in(2) else 0xFF
        if self._one_in(15):
            return self.rng.randrange(256)
        if not logical:
            return self.rng.choice(self.ids) & (0xFFFFFFFF if wide else 0xFF)
        if wide and self._one_in(2):
            cluster = self.rng.choice(self.ids) >> 4
            return cluster << 16 | self.rng.randrange(1, 16)
        if not wide and self.mode != "x2apic" and self._one_in(2):
            return self.rng.randrange(3) << 4 | self.rng.randrange(1, 4)
        return self.rng.randrange(1, 1 << self.n + 1)

    def _value(self, *usual: int) -> int:
        """What is written to a register: with swarm also what nobody in their right mind would write."""
        if self.swarm and self._one_in(3):
            return self.rng.choice((self.rng.getrandbits(32), self.rng.getrandbits(12), 1 << self.rng.randrange(32)))
        return self.rng.choice(usual)

    def _eoi(self) -> None:
        self._wr(self._vcpu(), (EOI, self._value(0)))

    def _tpr(self) -> None:
        v = self._vcpu()
        values = (0, 0x10, 0x30, 0x40, 0x50, 0x3F, 0xFF, *VECTORS[:4]) if self._x2apic(v) else (0, 0x10, 0x30, 0x40, 0x50, 0xF0)
        self._wr(v, (TPR, self._value(*values)))

    def _self_ipi(self) -> None:
        v = self._vcpu()
        if self._x2apic(v):
            self._wr(v, (SELF_IPI, self._vector() | self._one_in(30) << 8))
        else:
            self._eoi()

    def _svr(self) -> None:
        self._wr(self._vcpu(), (SVR, self._value(0x1FF, 0x1FF, 0xFF, 0x13F, 0x3FF)))

    def _lvt(self) -> None:
        self._wr(self._vcpu(), (self.rng.choice(LVT), self._value(0x8400, MASKED, 0x400, 0x700, 0x1A700, 0x31)))

    def _odd(self) -> None:
        v = self._vcpu()
        self.feat.add("odd_write")
        registers = ODD + ODD_X2APIC if self._x2apic(v) else ODD
        register = self.rng.choice((*registers, ESR, ESR, ESR))
        # In xAPIC mode the id is writable: then it is one of somebody, or of nobody.
        self._wr(v, (register, self._value(0, 1, 0xFF000000, 0x01000000)))

    def _logical_id(self) -> None:
        v = self._vcpu()
        if self._x2apic(v):
            self._eoi()
        elif self._one_in(3):
            self._wr(v, (DFR, self._value(FLAT, CLUSTER)))
        else:
            self._wr(v, (LDR, self._value(*(place << 24 for place in (0, 0x01, 0x02, 0x04, 0x11, 0x12, 0x14, 0x21, 0xFF)))))

    def _on(self, name: str, *arguments: int) -> None:
        self.ops.append([name, self._vcpu(), *arguments])

    def _setmp(self) -> None:
        self.feat.add("setmp")
        self._on("setmp", self.rng.choice((RUNNABLE, UNINITIALIZED, INIT_RECEIVED, HALTED, HALTED, SIPI_RECEIVED)))

    def _sipivec(self) -> None:
        self.feat.add("sipivec")
        self._on("sipivec", self.rng.randrange(256))

    def _base(self) -> None:
        if self.mode != "mixed":
            return
        self.feat.add("base")
        v = self._vcpu()
        now = FEE | (BSP if v == 0 else 0) | self.rng.choice((0, ENABLED, ENABLED | EXTD, ENABLED | EXTD))
        self.ops.append(["base", v, now])
        # The host may go from every mode to every other: only the guest has to follow the order of the SDM.
        self.bases[v] = now

    # Stories

    def _halt(self) -> None:
        """A vCPU halts, something comes, and it looks."""
        self.feat.add("halt")
        v = self._vcpu()
        self.ops += [["if", v, self.rng.choice((0, 1, 1, 1))], ["setmp", v, HALTED], self._event(v)]
        self.ops += [[self.rng.choice(("step", "step", "ack")), v], ["look", v]]

    def _halt_masked(self) -> None:
        """The same in an NMI handler, twice: one of them wakes for nothing."""
        self.feat.add("halt_masked")
        v = self._vcpu()
        self.ops += [["nmi", v], ["ack", v], ["setmp", v, HALTED], self._event(v), ["step", v], ["look", v]]
        self.ops += [["setmp", v, HALTED], ["step", v], ["look", v]]

    def _restart(self) -> None:
        """A vCPU is started again, more or less in the right order."""
        self.feat.add("restart")
        v = self._vcpu()
        for _ in range(self.rng.randint(2, 3)):
            self.ops.append(self._message(v, INIT << 8 if self._one_in(2) else STARTUP << 8 | self._sipi_vector()))
            if self._one_in(4):
                self.ops.append(["look", v])  # which takes what came until now
        self.ops += [[self.rng.choice(("look", "look", "step")), v] for _ in range(self.rng.randint(1, 3))]

    def _nest(self) -> None:
        """Interrupts of rising priority are taken into each other, and ended."""
        self.feat.add("nest")
        v = self._vcpu()
        self.ops += [["setmp", v, RUNNABLE], ["if", v, 1]]
        rising = sorted(self.rng.sample(range(0x20, 0x100), self.rng.randint(2, 3)))
        for vector in rising:
            self.ops += [self._message(v, vector), ["ack", v]]
        for _ in range(self.rng.randint(0, 2)):
            self._wr(v, (EOI, 0))

    def _event(self, v: int) -> list[Any]:
        """What may wake a halted vCPU: an interrupt, NMI, INIT, SIPI, or the kick of a paravirtual lock."""
        if self._one_in(4):
            return ["nmi", v]
        if self._one_in(20):
            self.feat.add("remrd")
            return self._message(v, REMRD << 8)
        startup = STARTUP << 8 | self.rng.choice(SIPI_VECTORS)
        return self._message(v, self.rng.choice((INIT << 8, NMI << 8, startup, self._vector(), self._vector())))

    def _message(self, v: int, data: int) -> list[Any]:
        apic_id = self.ids[v]
        return ["msi", FEE | (apic_id & 0xFF) << 12 | (apic_id & ~0xFF) << 32, data]

    # Choices

    def _vcpu(self) -> int:
        return self.rng.randrange(self.n)

    def _x2apic(self, v: int) -> bool:
        return bool(self.bases[v] & EXTD)

    def _vector(self) -> int:
        if self._one_in(40):
            self.feat.add("vec<16")
            return self.rng.randrange(16)
        return self.rng.choice(VECTORS) if not self._one_in(20) else self.rng.randrange(16, 256)

    def _sipi_vector(self) -> int:
        return self.rng.choice(SIPI_VECTORS) if self._one_in(2) else self.rng.randrange(256)

    def _one_in(self, number: int) -> bool:
        return self.rng.randrange(number) == 0
