"""Twins: two variants of which one search says all about the other, for in this set-up they do the same.

A search is a function of the World it starts with and of what its threads answer when they are given values; both are compared
here, so nothing has to be believed of a variant.  Two ways to be twins:

* **the same code**: of all functions that were looked up in the one search, while the machine was built, by its threads and by
  its checks, none is another function in the other variant.  Nothing is run.
* **the same behaviour**: the machine was built without a function that differs, its checks looked up none, and its threads, as
  automata (racevisor.automata), gave the same answer to every question that the one search asked: the same op, the same
  private state, the same local state number.  A search of the other variant would ask the same first question; if the answer is
  the same, the same second one; and so on to its end: the two automata are bisimilar as far as the search goes.

The questions that were asked of one machine make a tree: which question comes next depends only on the answers so far.  A variant
is taken down that tree; where it gives a new answer it is no twin, and its own search, which would have asked all these questions
itself, finds them answered.  So the comparison costs nothing where it fails.

The kernel's functions are compared as objects; answers by type and value, and only where all of it is plain data.  What a
search by the clock did is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actors.vm import KERNEL_FUNCTIONS, Calls
from racevisor.automata import Automata
from racevisor.ledger import BUDGET_SPENT
from racevisor.scenario import Case
from racevisor.world import World

if TYPE_CHECKING:
    from racevisor.explore import Verdict

Functions = dict[str, Callable[..., Any]]
#: what a thread is asked: (its place among the threads, local state, the value that it is given)
Question = tuple[int, int, Any]
_PLAIN = (int, str, float, bytes, type(None))


class Recorder(Calls):
    """vm.calls, noting what is looked up, and what of it by no thread: while the machine is built, or by a check."""

    def __init__(self, calls: Calls) -> None:
        self.names: set[str] = set()
        self.elsewhere: set[str] = set()
        self.built: frozenset[str] = frozenset()
        self.automata: Automata | None = None
        self.inner = calls

    def ready(self, automata: Automata | None) -> None:
        """The World has been built; its threads are these automata."""
        self.built = frozenset(self.names)
        self.automata = automata

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.names.add(name)
        if self.automata is None or not self.automata.resuming:
            self.elsewhere.add(name)
        return getattr(self.inner, name)  # type: ignore[no-any-return]


class _Node:
    """What is asked after the answers on the way here; at the end of a search, what it found."""

    __slots__ = ("answers", "found", "question")

    def __init__(self) -> None:
        self.question: Question | None = None
        self.answers: dict[Any, _Node] = {}
        self.found: tuple[Verdict, Functions, frozenset[str]] | None = None


class Twins:
    """What has been searched of one machine: one scenario, set-up, memory model and size, with the same options."""

    def __init__(self) -> None:
        #: verdict, case, its functions
        self.searched: list[tuple[Verdict, Case, Functions]] = []
        self._roots: dict[Any, _Node] = {}

    def same_code(self, case: Case) -> Verdict | None:
        """The verdict of a variant that is the same code here."""
        own = functions(case)
        for verdict, other, theirs in self.searched:
            if case.variant.exempt.keys() == other.variant.exempt.keys() and _agree(own, theirs, verdict.calls):
                what = (
                    f"nothing that {case.variant_name} replaces is called here"
                    if not other.variant.replaces
                    else f"no function in which {case.variant_name} differs from it is called here"
                )
                return _given(verdict, case, f"the same code as {verdict.variant}: {what}", 0.0)
        return None

    def same_behaviour(self, case: Case, world: World, recorder: Recorder) -> Verdict | None:
        """The verdict of a variant whose threads do the same.  `world` is one of `case` that has not run; it learns."""
        automata = world.automata
        node = self._roots.get(_root(case, recorder))
        if node is None or automata is None:
            return None
        asked = 0
        while node is not None and node.question is not None:
            index, before, value = node.question
            node = node.answers.get(_answer(automata, automata.move(world.threads[index], value, before)))
            asked += 1
        for thread in world.threads:
            thread.actor.notes.clear()
        if node is None or node.found is None:
            return None
        verdict, theirs, elsewhere = node.found
        if not _agree(functions(case), theirs, elsewhere):
            return None
        reason = f"the same behaviour as {verdict.variant}: all {asked:,} moves that its search asked of the threads are the same"
        return replace(_given(verdict, case, reason, 0.0), calls=frozenset(recorder.names | elsewhere))

    def add(self, case: Case, verdict: Verdict, world: World | None = None, recorder: Recorder | None = None) -> None:
        """Remember a search.  Without the World that it left, only for variants that are the same code."""
        if verdict.ledger.verdict == BUDGET_SPENT or verdict.ledger.by_clock:
            return
        own = functions(case)
        self.searched.append((verdict, case, own))
        if world is None or recorder is None or world.automata is None:
            return
        node = self._roots.setdefault(_root(case, recorder), _Node())
        index = {thread: n for n, thread in enumerate(world.threads)}
        for thread, before, value, after in world.automata.learned:
            if node.found is not None or not _plain(value):
                return
            answer = _answer(world.automata, after)
            if answer is None:
                return
            node.question = (index[thread], before, value)
            node = node.answers.setdefault(answer, _Node())
        if node.question is None and node.found is None:
            node.found = verdict, own, frozenset(recorder.elsewhere)


def functions(case: Case) -> Functions:
    """What vm.calls has for this case."""
    return {**KERNEL_FUNCTIONS, **case.scenario.functions, **case.variant.replaces}


def _agree(one: Functions, other: Functions, names: frozenset[str]) -> bool:
    return all(one.get(name) is other.get(name) for name in names)


def _given(verdict: Verdict, case: Case, reason: str, seconds: float) -> Verdict:
    ledger = replace(verdict.ledger, reason=reason, seconds=seconds)
    return replace(verdict, variant=case.variant_name, claimed=case.claimed, ledger=ledger)


def _root(case: Case, recorder: Recorder) -> Any:
    """What decides how the World was built."""
    own = functions(case)
    return frozenset(case.variant.exempt), tuple(sorted((name, id(own.get(name))) for name in recorder.built))


def _answer(automata: Automata, after: int) -> Any:
    """What came of a question, as a value: the local state, the op, the private attributes.  None if that is no plain data."""
    op = automata.ops[after]
    private = automata.private[after]
    if not _plain(private) or not (op is None or (_plain(op.a) and _plain(op.b))):
        return None
    words = None if op is None else (op.code, None if op.cell is None else op.cell.index, op.fn, op.order, repr((op.a, op.b)))
    return after, after in automata.anchors, words, repr(private)


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if type(value) is tuple else isinstance(value, _PLAIN)
