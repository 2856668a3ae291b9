"""The suspension points: every place where another CPU may run is an `await` on one of these ops.

Rule 1: one op is one access to shared state, or one barrier, one message sent, one block.  Nothing fuses two of them.
Rule 2: no other file yields.  A coroutine of the machine awaits ops and coroutines made of ops, and nothing else.
Rule 3: an op is plain data (a code, a cell, small arguments), so that it can travel to the host that owns the cell.

Ordering strengths follow the Linux kernel memory model (Documentation/memory-barriers.txt and atomic_t.txt): `set_bit` and
`clear_bit` are unordered, `test_and_*`, `xchg` and a successful `cmpxchg` are full barriers, `smp_store_release` orders what
came before it.  On x86 every locked instruction is a full barrier; the memory model in force decides that, not the op.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actors.actor import Cell


class Code(IntEnum):
    """What an op does; the numbers are the wire format and are never reused."""

    LOAD = 1
    STORE = 2
    RMW = 3
    FENCE = 4
    AWAIT = 5
    SEND = 6
    CHOOSE = 7


class Order(IntEnum):
    """How an op is ordered against the other accesses of its own thread."""

    NONE = 0  # relaxed: READ_ONCE, WRITE_ONCE, set_bit
    RELEASE = 1  # after every earlier store: smp_store_release, unlock
    FULL = 2  # a full barrier on both sides: xchg, test_and_set_bit
    LOCAL = 3  # state of one physical CPU, never in a store buffer: the IRQ flag
    READ = 4  # smp_rmb: no memory model here reorders loads, so it orders nothing yet
    WRITE = 5  # smp_wmb


class Op:
    """One step of a thread.  `cell` is None for barriers, sends and choices; `fn`, `a`, `b` are the arguments of an RMW."""

    __slots__ = ("a", "b", "cell", "code", "fn", "order")

    def __init__(
        self, code: Code, cell: Cell | None, fn: str = "", a: Any = None, b: Any = None, order: Order = Order.NONE
    ) -> None:
        self.code = code
        self.cell = cell
        self.fn = fn
        self.a = a
        self.b = b
        self.order = order

    def __await__(self) -> Generator[Op, Any, Any]:
        return (yield self)

    def __repr__(self) -> str:
        return f"<op {describe(self)}>"


_NO_ARGUMENTS = {"vm_enter", "ipi", "irq_enable"}


def describe(op: Op) -> str:
    """The op as a kernel engineer would write it, without its result: `xchg(lapic1.pending_events, 0)`."""
    cell = op.cell.label if op.cell is not None else ""
    if op.code == Code.LOAD:
        return f"READ_ONCE({cell})"
    if op.code == Code.STORE:
        name = "smp_store_release" if op.order == Order.RELEASE else "WRITE_ONCE"
        return f"{name}({cell}, {op.a})"
    if op.code == Code.FENCE:
        return {Order.FULL: "smp_mb()", Order.WRITE: "smp_wmb()", Order.READ: "smp_rmb()"}[op.order]
    if op.code == Code.SEND:
        return f"smp_send_reschedule({op.a})"
    if op.code == Code.CHOOSE:
        return f"choose({op.a})"
    if op.fn in _NO_ARGUMENTS:
        return f"{op.fn}({cell})"
    args = ", ".join(str(x) for x in (op.a, op.b) if x is not None)
    if op.fn == "await_masked":
        return f"await_masked({cell}, {masked(op)})"
    name = op.fn
    if op.order == Order.NONE and op.fn in ("or", "andnot"):
        name = {"or": "set_bits", "andnot": "clear_bits"}[op.fn]
    elif op.order == Order.FULL and op.fn in ("or", "andnot"):
        name = {"or": "test_and_set_bits", "andnot": "test_and_clear_bits"}[op.fn]
    return f"{name}({cell}, {args})"


def masked(op: Op) -> str:
    """The condition and the effect of an await_masked: `& 0x3 == 0x1, &= ~0x1, |= 0x2`."""
    mask, values = op.a
    wanted = f"== {values[0]:#x}" if len(values) == 1 else f"in {', '.join(f'{value:#x}' for value in values)}"
    clear, bits, *add = op.b or (0, 0)
    change = (f", &= ~{clear:#x}" if clear else "") + (f", |= {bits:#x}" if bits else "") + "".join(f", += {n:#x}" for n in add)
    return f"& {mask:#x} {wanted}{change}"


# ---- what an op does to the value of its cell: the same functions in the World and on a live host -----------------------

# Bits of the one cell of a physical CPU, see actors.pcpu; from CALL_QUEUED on, one for each CPU that may call a function there.
IRQS_OFF, IN_GUEST, IPI_PENDING = 1, 2, 4
HOST_TIMER = 8  # a timer of the host has fired here, and its handler has not run
CALL_QUEUED = 16


def _cmpxchg(value: Any, a: Any, b: Any) -> Any:
    return b if value == a else value


def _vm_enter(value: int, _a: Any, _b: Any) -> int:
    # An interrupt that is pending when the CPU enters the guest makes it leave at once [Intel SDM 26.7.5].
    return value if value & IPI_PENDING else value | IN_GUEST


def _ipi(value: int, _a: Any, _b: Any) -> int:
    # IRQs off covers guest mode too (the host enters with IRQs off): the interrupt stays pending and forces an exit.
    # With IRQs on, the host's handler runs the calls that were queued; for a reschedule IPI there is none, and the kick is gone.
    return value | IPI_PENDING if value & IRQS_OFF else value & (HOST_TIMER - 1)


def _irq_enable(value: int, _a: Any, _b: Any) -> int:
    # The handler of a pending IPI runs and answers what is queued; a call whose IPI has not arrived yet stays queued.
    return value & (HOST_TIMER - 1) & ~(IRQS_OFF | IPI_PENDING) if value & IPI_PENDING else value & ~IRQS_OFF


#: Read-modify-write functions by wire name: new value = fn(old value, a, b); the op's result is the old value.
RMW = {
    "or": lambda value, a, _b: value | a,
    "andnot": lambda value, a, _b: value & ~a,
    "xchg": lambda _value, a, _b: a,
    "add": lambda value, a, _b: value + a,
    "cmpxchg": _cmpxchg,
    "vm_enter": _vm_enter,
    "ipi": _ipi,
    "irq_enable": _irq_enable,
}


#: Those that are set_bit() and clear_bit() when they order nothing.
VOID = ("or", "andnot")


def _replace(value: Any, b: Any) -> Any:
    return value if b is None else b


def _update_bits(value: int, b: tuple[int, ...] | None) -> int:
    return value if b is None else (value & ~b[0] | b[1]) + sum(b[2:])


#: Conditions of blocking ops by wire name: may the op go on?
AWAIT = {
    "await_eq": lambda value, a: bool(value == a),
    "await_bits": lambda value, a: bool(value & a),
    "await_masked": lambda value, a: value & a[0] in a[1],
}

#: What a blocking op does to its cell in the step in which it goes on: new value = fn(old value, b); b is None if it only reads.
AWAITED = {
    "await_eq": _replace,
    "await_bits": _replace,
    "await_masked": _update_bits,
}


def may_write(op: Op) -> bool:
    """Can a blocking op change its cell once it goes on?  Whether it did is told by the values before and after the step."""
    return op.b is not None


def apply(op: Op, value: Any) -> tuple[Any, Any]:
    """(new value of the cell, result for the thread) of a load, store, RMW or unblocked await on a cell holding `value`."""
    code = op.code
    if code == Code.LOAD:
        return value, value
    if code == Code.STORE:
        return op.a, None
    if code == Code.RMW:
        return RMW[op.fn](value, op.a, op.b), None if is_void(op) else value
    return AWAITED[op.fn](value, op.b), value


# ---- what the machine awaits; names and order of arguments are the kernel's ----------------------------------------------


def READ_ONCE(cell: Cell) -> Op:
    """Load a shared variable."""
    return cell.load


def WRITE_ONCE(cell: Cell, value: Any) -> Op:
    """Plain store; it may wait in a store buffer (tso, pso) before others see it."""
    return Op(Code.STORE, cell, a=value)


def smp_store_release(cell: Cell, value: Any) -> Op:
    """Store that becomes visible after every earlier store of this thread."""
    return Op(Code.STORE, cell, a=value, order=Order.RELEASE)


def is_void(op: Op | None) -> bool:
    """Does the op tell its thread nothing of the old value?  So it is with set_bit() and clear_bit(), in the kernel and here."""
    return op is not None and op.code == Code.RMW and op.order == Order.NONE and op.fn in VOID


def set_bit(nr: int, cell: Cell) -> Op:
    """Atomic and unordered (on x86: LOCK OR, a full barrier); returns None."""
    return Op(Code.RMW, cell, "or", 1 << nr)


def clear_bit(nr: int, cell: Cell) -> Op:
    """Atomic and unordered (on x86: LOCK AND, a full barrier); returns None."""
    return Op(Code.RMW, cell, "andnot", 1 << nr)


class _TestBit:
    """Awaitable: an RMW of one bit whose result is that bit's old value (0 or 1)."""

    __slots__ = ("nr", "op")

    def __init__(self, op: Op, nr: int) -> None:
        self.op = op
        self.nr = nr

    def __await__(self) -> Generator[Op, Any, int]:
        old: int = yield self.op
        return old >> self.nr & 1


def test_and_set_bit(nr: int, cell: Cell) -> _TestBit:
    """Atomic, full barrier; returns the bit's old value."""
    return _TestBit(Op(Code.RMW, cell, "or", 1 << nr, order=Order.FULL), nr)


def test_and_clear_bit(nr: int, cell: Cell) -> _TestBit:
    """Atomic, full barrier; returns the bit's old value."""
    return _TestBit(Op(Code.RMW, cell, "andnot", 1 << nr, order=Order.FULL), nr)


test_and_set_bit.__test__ = False  # type: ignore[attr-defined]  # kernel names, not pytest tests
test_and_clear_bit.__test__ = False  # type: ignore[attr-defined]


def xchg(cell: Cell, value: Any) -> Op:
    """Atomic exchange, full barrier; returns the old value."""
    return Op(Code.RMW, cell, "xchg", value, order=Order.FULL)


def cmpxchg(cell: Cell, old: Any, new: Any) -> Op:
    """Atomic compare and exchange; returns the old value; a full barrier if it succeeds."""
    return Op(Code.RMW, cell, "cmpxchg", old, new, order=Order.FULL)


def atomic_fetch_add(value: int, cell: Cell) -> Op:
    """Atomic add, full barrier; returns the old value."""
    return Op(Code.RMW, cell, "add", value, order=Order.FULL)


_MB = Op(Code.FENCE, None, order=Order.FULL)
_WMB = Op(Code.FENCE, None, order=Order.WRITE)
_RMB = Op(Code.FENCE, None, order=Order.READ)


def smp_mb() -> Op:
    """Full barrier: earlier stores are visible before anything later happens."""
    return _MB


def smp_wmb() -> Op:
    """Earlier stores become visible before later ones."""
    return _WMB


def smp_rmb() -> Op:
    """Earlier loads happen before later ones; no memory model of this version reorders loads."""
    return _RMB


def await_eq(cell: Cell, value: Any, new: Any = None) -> Op:
    """Block until the cell holds `value`; then, in the same step, store `new` if given.  Locks and schedule() are made of it."""
    return Op(Code.AWAIT, cell, "await_eq", value, new, Order.FULL)


def await_bits(cell: Cell, mask: int) -> Op:
    """Block until any bit of `mask` is set in the cell; returns the value seen."""
    return Op(Code.AWAIT, cell, "await_bits", mask, order=Order.FULL)


def await_masked(cell: Cell, mask: int, value: int | tuple[int, ...], clear: int = 0, set: int = 0, add: int = 0) -> Op:
    """Block until `cell & mask` is `value` (or one of several); then, in the same step, clear and set bits, and add a number.

    A guarded action on a packed word: counting locks, reader-writer semaphores, a bit spinlock.  Without bits to clear or set,
    and nothing to add, it only reads.  Returns the value seen.
    """
    values = value if isinstance(value, tuple) else (value,)
    change = (clear, set, add) if add else (clear, set) if clear or set else None
    return Op(Code.AWAIT, cell, "await_masked", (mask, values), change, Order.FULL)


def local_rmw(cell: Cell, fn: str, a: Any = None) -> Op:
    """RMW on the state of the CPU that executes it: immediate, never in a store buffer, orders nothing."""
    return Op(Code.RMW, cell, fn, a, order=Order.LOCAL)


def local_load(cell: Cell) -> Op:
    """Load of the state of the CPU that executes it."""
    return Op(Code.LOAD, cell, order=Order.LOCAL)


def cpu_rmw(cell: Cell, fn: str, a: Any = None) -> Op:
    """RMW on the state of the CPU that executes it which is also a full barrier: VM entry, VM exit."""
    return Op(Code.RMW, cell, fn, a, order=Order.FULL)


def send_ipi(pcpu: str) -> Op:
    """Send a reschedule IPI to the physical CPU of that name; it arrives later, in a step of its own."""
    return Op(Code.SEND, None, a=pcpu, order=Order.FULL)


def choose(n: int) -> Op:
    """A choice of the environment: returns 0..n-1, each a transition that the strategy may take."""
    return Op(Code.CHOOSE, None, a=n)
