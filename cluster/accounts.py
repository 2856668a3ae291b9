"""What became of all that was sent in rounds that were given up.  No Ray in here.

A host that is lost takes its cells with it, so the rounds that were played are aborted wherever they stand.  Those that are left
take a consistent cut (Chandy and Lamport, "Distributed snapshots", ACM TOCS 1985): each stops the round, tells the driver what it
has sent to each other and got from it, and marks its channel to each.  What arrives of the round before the mark of its sender
was in flight.  Nothing of the round follows a mark, and channels keep their order; so for any two that are left, what one had
sent is what the other had got and what was in flight, and nothing else.

The account is kept by pairs of hosts.  When another host is lost meanwhile, its pairs are left out and no other is begun anew.
What was sent to a lost host is lost with it; what it had sent and nobody has got, nobody but itself has known.  Rounds that are
not aborted pay nothing for all this: a host that has stopped has its frames taken by somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cluster.counts import Counts
from cluster.engine import Engine
from cluster.messages import ARRIVED, DRIVER, MARK, NO_VM, STOPPED, FrameError, Message, name_of
from racevisor.errors import ClusterError

#: (peer, part): what a host has to say.
Said = tuple[int, tuple[int, int, int, list[Message]]]
#: What takes a part that another host has sent, for one machine: (sender, round, clock, messages).
Taker = Callable[[int, int, int, Sequence[Message]], None]


# ---- on a host ----------------------------------------------------------------------------------------------------------------


class Cut:
    """A round of one machine that was stopped here: it takes what still arrives of it, and counts that."""

    def __init__(self, engine: Engine, round_: int, left: Sequence[int]) -> None:
        engine.begin(round_)  # the mark of another host may overtake the driver's word that the round begins
        engine.close()
        engine.ready.clear()
        engine.draining.clear()
        engine.outbox.clear()  # what has not left was not sent
        engine.stirred = False
        engine.collected = True  # nobody will ask for this round
        self.engine = engine
        self.round = round_
        self.left = left
        self.open = {other: (0, 0) for other in left if other != engine.me}  # not marked yet: parts and messages since

    def take(self, sender: int, round_: int, clock: int, messages: Sequence[Message]) -> None:
        """What another host said; FrameError if it has marked the channel and goes on with the round."""
        if round_ > self.round:
            self.engine.take(sender, round_, clock, messages)
        elif round_ == self.round and sender in self.left:  # else it is a lost one's
            if sender not in self.open:
                raise FrameError(f"a frame of {name_of(sender)} goes on with round {round_}, which {name_of(sender)} had stopped")
            parts, said = self.open[sender]
            self.open[sender] = parts + 1, said + len(messages)


class Cuts:
    """All that a host knows of accounts.  `takers`, one for each machine, is the host's; rounds that are stopped change it."""

    def __init__(self, me: int, hosts: int, engines: Sequence[Engine]) -> None:
        self.me = me
        self.hosts = hosts
        self.engines = engines
        self.takers: list[Taker] = [engine.take for engine in engines]
        self.cuts: dict[int, Cut] = {}  # by machine

    def begin(self, vm: int, round_: int) -> None:
        """The driver lets a round begin: the one before it is accounted for."""
        if vm in self.cuts and self.cuts[vm].round < round_:
            del self.cuts[vm]
            self.takers[vm] = self.engines[vm].take

    def stop(self, vm: int, round_: int, left: Sequence[int]) -> list[Said]:
        """Stop a round, if it has not been; what there is to say of it to the driver, and to those that are `left`."""
        engine = self.engines[vm]
        cut = self.cuts.get(vm)
        if round_ < engine.round or (cut is not None and cut.round >= round_):
            return []
        cut = self.cuts[vm] = Cut(engine, round_, left)
        self.takers[vm] = cut.take
        tallies = (engine.sent, engine.received, engine.spoken, engine.heard)
        counts = (STOPPED, *(tuple(tally.get(host, 0) for host in range(self.hosts)) for tally in tallies))
        mark = (MARK, vm, round_, tuple(left))
        return [(DRIVER, (vm, round_, 0, [counts])), *((other, (NO_VM, 0, 0, [mark])) for other in cut.open)]

    def hear(self, sender: int, one: Message) -> list[Said]:
        """A mark of another host.  It stops the round here too, if the driver's word is still on its way."""
        if one[0] != MARK:
            raise FrameError(f"a frame of {name_of(sender)} holds a message for no machine: {one!r:.80}")
        _, vm, round_, left = one
        if not 0 <= vm < len(self.engines) or not {sender, self.me} <= set(left) <= set(range(self.hosts)):
            raise FrameError(f"a frame of {name_of(sender)} stops a round that it cannot: {one!r:.80}")
        said = self.stop(vm, round_, left)
        cut = self.cuts.get(vm)
        if cut is None or cut.round != round_:
            return said  # of an account that is closed
        if sender not in cut.open:
            raise FrameError(f"a frame of {name_of(sender)} stops round {round_} a second time")
        return [*said, (DRIVER, (vm, round_, 0, [(ARRIVED, sender, *cut.open.pop(sender))]))]


# ---- at the driver ------------------------------------------------------------------------------------------------------------


class Amounts(NamedTuple):
    """Of all that the hosts that are left had sent: sent == delivered + in_flight + lost."""

    sent: int = 0
    #: got by another of them, before it stopped
    delivered: int = 0
    #: on its way then, from one of them to another
    in_flight: int = 0
    #: sent to lost hosts, whether they got it or not
    lost: int = 0
    #: got from lost hosts: what else those had sent is unknown
    from_lost: int = 0

    def plus(self, more: Amounts) -> Amounts:
        """The sum."""
        return Amounts(*(a + b for a, b in zip(self, more, strict=True)))


class Account(NamedTuple):
    """What became of the rounds that one loss has aborted.

    `parts`: what one host said to another about one machine in one turn; `messages`: single ones between actors, where rounds
    that had ended, and whose reports were on their way home, are left out: all of theirs had arrived, but were not counted.
    """

    parts: Amounts
    messages: Amounts
    #: how many hosts were lost until the account was closed
    gone: int = 1

    def __str__(self) -> str:
        hosts = "host" if self.gone == 1 else "hosts"
        return f"in flight {self.parts.in_flight:,} parts, lost with the {hosts} {self.parts.lost:,}"


class _Round:
    """What the hosts have said of one round: rows by host, and by (sender, receiver) what was in flight."""

    def __init__(self, number: int, counts: Counts) -> None:
        self.number = number
        self.counts = counts  # what they had said while it was played
        self.rows: dict[int, tuple[tuple[int, ...], ...]] = {}
        self.flown: dict[tuple[int, int], tuple[int, int]] = {}


class Accounts:
    """The accounts of the rounds that the loss of host `lost` has aborted, while they are made.

    `playing`: the counts of rounds that were played, by (machine, number); `over`: of those that had ended.
    """

    def __init__(self, hosts: int, lost: int, playing: Mapping[tuple[int, int], Counts], over: Iterable[Counts]) -> None:
        self.left = [host for host in range(hosts) if host != lost]
        self.gone = [lost]
        self.over = list(over)
        self.rounds = {key: _Round(key[1], counts) for key, counts in playing.items()}
        #: what is not known yet: (machine, number, sender, receiver), where both are the same for what a host says of itself
        self.open = {(*key, i, j) for key in self.rounds for i in self.left for j in self.left}

    def closed(self) -> bool:
        """Is all known that those who are left can say?"""
        return not self.open

    @property
    def waiting(self) -> list[int]:
        """Who has something to say yet."""
        return sorted({receiver for _, _, _, receiver in self.open})

    def drop(self, host: int) -> None:
        """Another host is lost, and accounts for nothing any more."""
        if host in self.left:
            self.left.remove(host)
            self.gone.append(host)
            self.open = {one for one in self.open if host not in one[2:]}

    def hear(self, sender: int, vm: int, number: int, one: Message) -> None:
        """What a host says of a round.  FrameError if that makes no sense."""
        round_ = self.rounds.get((vm, number))
        if round_ is None or sender not in self.left:
            return  # it is late
        if one[0] == STOPPED:
            if any(len(row) != len(self.left) + len(self.gone) or set(map(type, row)) != {int} for row in one[1:]):
                raise FrameError(f"a frame of {name_of(sender)} accounts for other hosts than there are: {one!r:.80}")
            round_.rows[sender] = one[1:]
            self.open.discard((vm, number, sender, sender))
        else:
            _, other, parts, messages = one
            round_.flown[other, sender] = parts, messages
            self.open.discard((vm, number, other, sender))

    def settle(self) -> Account:
        """The account, once it is closed.  ClusterError names two hosts that do not agree."""
        parts = messages = Amounts()
        for counts in self.over:  # they were over because all that was sent had been got
            sent = sum(map(sum, counts.sent))
            parts = parts.plus(Amounts(sent, sent))
        for round_ in self.rounds.values():
            self._agree(round_)
            parts = parts.plus(self._amounts(round_, 0))
            messages = messages.plus(self._amounts(round_, 1))
        return Account(parts, messages, len(self.gone))

    def _amounts(self, round_: _Round, kind: int) -> Amounts:
        """In parts (0) or in messages (1)."""
        left, gone, rows = self.left, self.gone, round_.rows
        sent, got = 2 * kind, 2 * kind + 1
        return Amounts(
            sum(sum(rows[i][sent]) for i in left),
            sum(rows[j][got][i] for i in left for j in left),
            sum(round_.flown[i, j][kind] for i in left for j in left if i != j),
            sum(rows[i][sent][j] for i in left for j in gone),
            sum(rows[i][got][j] for i in left for j in gone),
        )

    def _agree(self, round_: _Round) -> None:
        rows, hint = round_.rows, "\n  the other transport:  --transport sockets, or --transport ray"
        for i in self.left:
            sent, spoken = rows[i][0], rows[i][2]
            for j in self.left:
                if i == j:
                    continue
                got, heard = rows[j][1][i], rows[j][3][i]
                parts, messages = round_.flown[i, j]
                if (sent[j], spoken[j]) != (got + parts, heard + messages):
                    raise ClusterError(
                        f"round {round_.number} was aborted, and not all of it is accounted for: {name_of(i)} had sent"
                        f" {_words(sent[j], spoken[j])} to {name_of(j)}, which had got {_words(got, heard)},"
                        f" and {_words(parts, messages)} came later{hint}"
                    )
            for j in self.gone:
                known: Any = round_.counts.received[j][i]
                if known > sent[j]:
                    raise ClusterError(
                        f"round {round_.number} was aborted, and not all of it is accounted for: {name_of(i)} had sent"
                        f" {sent[j]} parts to {name_of(j)}, which had got {known} before it was lost{hint}"
                    )


def _words(parts: int, messages: int) -> str:
    return f"{parts} parts with {messages} messages"
