"""Two protocols as a TLA+ course states them, one op for each action: their numbers of states are widely published.

An action may look at several variables at once, so all of them are bits of one cell: `await_masked` is the guarded action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from actors.ops import Op, await_masked, clear_bit, set_bit, smp_rmb
from actors.thread import Thread
from actors.vm import Vm
from racevisor.world import World


def peterson() -> World:
    """Peterson's mutual exclusion of two processes (Lamport's PlusCal version): 42 states, 77 generated.

    Six labels: the noncritical section, `flag[self] := TRUE`, `turn := 1 - self`, the await of `flag[1-self] = FALSE or
    turn = self`, the critical section, `flag[self] := FALSE`.
    """
    vm = Vm()
    memory: Any = vm.guest_memory(word=0)
    word = memory.word
    turn = 2  # bits 0 and 1 are the flags

    def process(self: int) -> Callable[[Thread], Any]:
        flag, mine = 1 << 1 - self, self << turn
        may_enter = 0, 1 << turn, flag | mine

        async def body(me: Thread) -> None:
            while True:
                me.checkpoint("ncs")
                await smp_rmb()  # a step that touches nothing
                me.checkpoint("a1")
                await set_bit(self, word)
                me.checkpoint("a2")
                await (clear_bit(turn, word) if self else set_bit(turn, word))
                me.checkpoint("a3")
                await await_masked(word, flag | 1 << turn, may_enter)
                me.checkpoint("cs")
                await smp_rmb()
                me.checkpoint("a4")
                await clear_bit(self, word)

        return body

    for i in (0, 1):
        Thread(vm, f"P{i}", process(i))
    return World(vm, "sc", automata=True)


_WORKING, _PREPARED, _COMMITTED, _ABORTED = range(4)  # a resource manager; the transaction manager starts in 0 as well


def two_phase_commit(resource_managers: int = 3) -> World:
    """Two-phase commit (Gray and Lamport, Consensus on Transaction Commit, 2006); with 3: 288 states, 1,146 generated.

    `resource_managers` is their number.  Messages are never taken out, so an action may repeat itself without any effect.
    """
    vm = Vm()
    memory: Any = vm.guest_memory(word=0)
    word = memory.word
    everyone = (1 << resource_managers) - 1
    state = [2 * i for i in range(resource_managers + 1)]  # the last one is the transaction manager's
    manager = state[-1]
    prepared = manager + 2  # what the transaction manager knows
    sent = prepared + resource_managers  # the "prepared" messages, then "commit" and "abort"
    commit, abort = (1 << sent + resource_managers + i for i in (0, 1))

    def action(name: str, op: Op) -> None:
        async def body(me: Thread) -> None:
            while True:
                me.checkpoint(name)
                await op

        Thread(vm, name, body)

    def guarded(mask: int, value: int, clear: int, bits: int) -> Op:
        return await_masked(word, mask, value, clear, bits)

    tm = 3 << manager
    ready = everyone << prepared
    action("TMCommit", guarded(tm | ready, ready, tm, _COMMITTED << manager | commit))
    action("TMAbort", guarded(tm, 0, tm, _ABORTED << manager | abort))
    for i in range(resource_managers):
        at = state[i]
        rm = 3 << at
        message = 1 << sent + i
        action(f"TMRcvPrepared{i}", guarded(tm | message, message, 0, 1 << prepared + i))
        action(f"RMPrepare{i}", guarded(rm, _WORKING, rm, _PREPARED << at | message))
        action(f"RMChooseToAbort{i}", guarded(rm, _WORKING, rm, _ABORTED << at))
        action(f"RMRcvCommitMsg{i}", guarded(commit, commit, rm, _COMMITTED << at))
        action(f"RMRcvAbortMsg{i}", guarded(abort, abort, rm, _ABORTED << at))
    return World(vm, "sc", automata=True)
