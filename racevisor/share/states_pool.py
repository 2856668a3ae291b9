"""The driver's side of the stateful search: the states that are done with, and the stacks that are not.

What is handed out is a *stack*: a path from the initial state, and the branching states on it with the heads that are still to be
tried there.  What comes home is what a worker did with it in one slice, all or nothing: the states that it expanded, and the
stack that it has left.  Workers hear of the states that are committed, and go on from none of those again.

**Why that is sound.**  A state is *done with, except for Z* (names of channels), if every run from it that does not begin in Z,
up to commutation, is walked, or begins in a head that waits in a stack, be it the pool's or that of a piece that is out.  The
induction over the length of runs by which sleep sets with state matching are proved (Godefroid, LNCS 1032, section 5.2) asks for
no more: not in which order, and not that anybody has come to his end.  So a worker may turn back at a state that another one has
committed, for with it the pool got all that was left to do below; and at a state that it has expanded itself in the same slice,
for both will be committed together.  It may not turn back at a state that was only begun, by others or by itself in a slice
that was lost: nobody might ever do the rest.  So a worker forgets at the end of a slice what it did, and hears of it by the news.

Two workers may expand one state at a time, one except for Y, the other except for Z.  It is done with except for Y, and done with
except for Z, but *not* except for what is in both: of a run that may begin with y and with z, the one has taken z with y asleep,
the other y with z asleep, and nobody walks it.  So one of the two is kept, the smaller one, which spares others more.

**Beliefs.**  Which cells are one thread's own is believed until somebody else is about to touch them (strategies/states.py).
That somebody is about to is true of the machine, whoever saw it, whatever became of the slice.  A slice counts if nothing that
it believed, and nothing that the committed slices of its *epoch* believed, is false; otherwise the epoch ends, states and stacks
are dropped, and the search begins again knowing better.  So that this happens early, the first piece of an epoch is out alone.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from racevisor.classes import Certificate
from racevisor.errors import UsageError
from racevisor.estimate import Estimate
from racevisor.share.digest import BYTES, digest
from racevisor.tally import Tally

if TYPE_CHECKING:
    from racevisor.choose import Wanted
    from racevisor.scenario import Case

#: [names of channels, path as indices of names, [[depth, asleep, to be tried], ...]]: a branching state at each depth
Stack = list[Any]

COVERS = "expanded states, end states and failed checks"


class StatesPool:
    """Of the stateful search."""

    def __init__(self, case: Case, wanted: Wanted) -> None:
        if wanted.symmetry:
            raise UsageError(
                "--symmetry and --workers do not go together: workers name a state by what it is, not up to permutation\n"
                "  leave out one of the two"
            )
        self.wanted = wanted
        self.tally = Tally()
        self.blocked = 0
        self.calls: set[str] = set()
        self.ends: dict[bytes, str] = {}  # every end state, and its outcome
        self.learned: set[str] = set()  # checks that failed while only learning, in no epoch
        self.owners: dict[int, str] = {}  # domain or pair -> the channel of its one accessor, "" if it is shared
        self.rounds: set[bytes] = set()
        self.epoch = 0
        self.restarts = 0
        self.learns = True  # does the root begin with executions that only learn?
        self.version = 0
        self.numbers = 0
        self._begin()

    def _begin(self) -> None:
        """An epoch: nothing is done with yet."""
        self.failed: set[str] = set()
        self.bounded = False  # was an execution cut?
        self.table: dict[bytes, int] = {}  # state -> number of what slept in it
        self.asleep: list[tuple[str, ...]] = []
        self.which: dict[tuple[str, ...], int] = {}
        self.log: list[tuple[int, list[list[Any]]]] = []  # (version, what a commit added)
        self.total = 0
        self.out: dict[int, tuple[Stack, int]] = {}  # number -> (stack, executions at most)
        self.waiting: list[Stack] = [[[], [], []]]  # no branching state is known yet
        self.shared = False  # is the first piece of the epoch home?

    # ---- how it stands ----------------------------------------------------------------------------------------------------

    @property
    def states(self) -> int:
        """States expanded, each counted once."""
        return len(self.table)

    @property
    def done(self) -> bool:
        """Is nothing left, neither to be handed out nor to be waited for?"""
        return not self.out and (not self.waiting or self._left() == 0)

    @property
    def exhausted(self) -> bool:
        """Is it done because everything was searched?"""
        return not self.out and not self.waiting and not self.bounded

    def certificate(self) -> tuple[Certificate, str] | None:
        """Of all states that were expanded, all end states, and the names of the checks that failed.

        None of these depends on the order of the search.  Which of several executions into an end state are run does, and so do
        the states in which a check fails: a failed check ends the execution, wherever what is independent of it stands.
        """
        if not self.exhausted:
            return None
        failed = [digest("failed", check) for check in self.failed | self.learned]
        total = self.total + sum(int.from_bytes(key, "big") for key in (*(digest("end", end) for end in self.ends), *failed))
        return Certificate(len(self.table) + len(self.ends) + len(failed), total % (1 << 8 * BYTES)), COVERS

    def outcomes(self) -> Counter[str]:
        """Outcome -> number of end states; what a failed check cut short is not among them."""
        return Counter(self.ends.values())

    def estimate(self, seconds: float) -> Estimate | None:
        """None: where states are recognised, what waits says little about how much is new below it."""
        return None

    def facts(self) -> dict[str, Any]:
        """Of the ledger."""
        return {"blocked": self.blocked}

    # ---- out and in -------------------------------------------------------------------------------------------------------

    def _left(self) -> int | None:
        """Executions of the budget that nobody has been given."""
        runs = self.wanted.runs
        return None if runs is None else max(0, runs - self.tally.runs - sum(given for _, given in self.out.values()))

    def give(self) -> tuple[int, Any] | None:
        """The stack that came home last, without its upper half if there is no other for whoever asks next."""
        left = self._left()
        if left == 0 or not self.waiting or (self.out and not self.shared):
            return None
        stack = self.waiting.pop()
        if not self.waiting:
            rest = halve(stack)
            if rest is not None:
                self.waiting.append(rest)
        self.numbers += 1
        runs = 0 if left is None else -(-left // (2 if self.waiting else 1))
        self.out[self.numbers] = stack, runs
        return self.numbers, {
            "epoch": self.epoch,
            "owners": [[share, owner] for share, owner in self.owners.items()],
            "rounds": sorted(self.rounds),
            "stack": stack,
            "runs": runs,
            "learn": self.learns,
            "order": self.numbers,
        }

    def take(self, number: int, result: Any) -> None:
        """Commit a slice, if what it believed is what the others believe."""
        given = self.out.pop(number, None)
        current = result["epoch"] == self.epoch
        if current and given is None:
            return  # it was taken for lost, and somebody else has got the stack
        self.calls.update(result["calls"])
        it_erred, we_erred = self._learn(result)
        if current:
            self.tally.merge(Tally.of(result["tally"]))
            self.blocked += result["blocked"]
            self.learned.update(result["learned"])
            self._meet(result["ends"])
            self.learns = self.learns and not self.tally.runs
        if (self.shared and we_erred) or (current and (it_erred or result["broken"])):
            self._restart()
        elif current:
            self.shared = True
            self.version += 1
            self.failed.update(result["failed"])
            self.bounded = self.bounded or result["bounded"]
            self._commit(result["states"])
            if result["rest"] is not None:
                self.waiting.append(result["rest"])

    def lost(self, number: int) -> None:
        """Whoever had the piece is gone."""
        given = self.out.pop(number, None)
        if given is not None:
            self.waiting.append(given[0])

    def _restart(self) -> None:
        self.epoch += 1
        self.restarts += 1
        self.version += 1
        self._begin()

    def _learn(self, result: Any) -> tuple[bool, bool]:
        """What a result knows of the machine: did it believe what is false, and did the pool?"""
        it_erred = we_erred = False
        for share, owner in result["owners"]:
            known = self.owners.setdefault(share, owner)
            if known != owner:
                self.owners[share] = ""
                it_erred = it_erred or owner != ""
                we_erred = we_erred or known != ""
        rounds = set(result["rounds"])
        it_erred = it_erred or not self.rounds <= rounds
        we_erred = we_erred or not rounds <= self.rounds
        self.rounds |= rounds
        return it_erred, we_erred

    def _meet(self, ends: list[list[Any]]) -> None:
        for outcome, blob in ends:
            for at in range(0, len(blob), BYTES):
                self.ends.setdefault(blob[at : at + BYTES], outcome)

    def _commit(self, states: list[list[Any]]) -> None:
        table = self.table
        added = []
        for names, blob in states:
            which = self._number(tuple(names))
            fresh = []
            for at in range(0, len(blob), BYTES):
                key = blob[at : at + BYTES]
                known = table.get(key)
                if known is None:
                    self.total += int.from_bytes(key, "big")
                elif len(self.asleep[known]) <= len(names):
                    continue  # somebody else has expanded it: see above why not what is in both
                table[key] = which
                fresh.append(key)
            if fresh:
                added.append([names, b"".join(fresh)])
        self.log.append((self.version, added))

    def _number(self, names: tuple[str, ...]) -> int:
        if names not in self.which:
            self.which[names] = len(self.asleep)
            self.asleep.append(names)
        return self.which[names]

    def news(self, since: int) -> tuple[int, Any]:
        """The states that were committed after version `since`.  Who misses some expands them again, and errs in nothing."""
        states = []
        for version, added in reversed(self.log):
            if version <= since:
                break
            states.append(added)
        return self.version, {
            "epoch": self.epoch,
            "since": since,
            "version": self.version,
            "states": [one for added in reversed(states) for one in added],
        }

    # ---- a checkpoint -----------------------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """States by what slept in them; what is out is waiting."""
        by: dict[int, list[bytes]] = {}
        for key, which in self.table.items():
            by.setdefault(which, []).append(key)
        outcomes: dict[str, list[bytes]] = {}
        for key, outcome in self.ends.items():
            outcomes.setdefault(outcome, []).append(key)
        return {
            "epoch": self.epoch,
            "restarts": self.restarts,
            "version": self.version,
            "numbers": self.numbers,
            "learns": self.learns,
            "shared": self.shared,
            "tally": self.tally.plain(),
            "blocked": self.blocked,
            "calls": sorted(self.calls),
            "ends": [[outcome, b"".join(keys)] for outcome, keys in outcomes.items()],
            "learned": sorted(self.learned),
            "failed": sorted(self.failed),
            "bounded": self.bounded,
            "owners": [[share, owner] for share, owner in self.owners.items()],
            "rounds": sorted(self.rounds),
            "states": [[list(self.asleep[which]), b"".join(keys)] for which, keys in by.items()],
            "waiting": [*(stack for stack, _ in self.out.values()), *self.waiting],
        }

    @classmethod
    def load(cls, case: Case, wanted: Wanted, saved: Any) -> Self:
        """As it was when it was saved, in an epoch of its own: who has heard of more since then has to forget it."""
        pool = cls(case, wanted)
        pool.tally = Tally.of(saved["tally"])
        pool.blocked, pool.restarts, pool.numbers = saved["blocked"], saved["restarts"], saved["numbers"]
        pool.epoch, pool.version = saved["epoch"] + 1, saved["version"] + 1
        pool.calls, pool.learned = set(saved["calls"]), set(saved["learned"])
        pool.owners = dict(saved["owners"])
        pool.rounds, pool.learns = set(saved["rounds"]), saved["learns"]
        pool._meet(saved["ends"])
        pool._begin()
        pool.failed, pool.shared, pool.waiting = set(saved["failed"]), saved["shared"], list(saved["waiting"])
        pool.bounded = saved["bounded"]
        pool._commit(saved["states"])
        return pool

    def close(self) -> None:
        """There is nothing to close."""


def halve(stack: Stack) -> Stack | None:
    """Leave about half of what is to be tried in `stack`, what is deepest; the rest, or None if there is only one head.

    Of one state, what is left to others sleeps on what is not, as if it were taken later; that it may be taken sooner is all the
    same, for the induction asks which heads a run leaves out, and not when they were taken.
    """
    names, path, frames = stack
    most = sum(len(todo) for _, _, todo in frames) // 2
    if not most:
        return None
    upper = []
    while most:
        depth, asleep, todo = frames[0]
        if len(todo) <= most:
            frames.pop(0)
        else:
            frames[0] = [depth, asleep, todo[most:]]
        upper.append([depth, asleep + todo[most:], todo[:most]])
        most -= len(upper[-1][2])
    return [names, path[: upper[-1][0]], upper]
