"""Every message of a round that is given up is accounted for, by pairs of the hosts that are left.

Without Ray: a seed picks which frame arrives next, so that a host may die with its channels drained to any degree.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PROGRAMS, Network, Program, case_of

from cluster.accounts import Account, Accounts, Amounts, Cut
from cluster.counts import Counts
from cluster.messages import ARRIVED, CUT, DRIVER, FAILURE, MARK, NO_VM, STOPPED, FrameError, Message, decode, encode
from racevisor.errors import ClusterError

RELAY = "x=1 y=1 z=1 w=1 r0=x r1=y | x+=1 y+=1 z=1 w=1 | lock x=2 y=2 unlock | y+=1 x+=1 lock unlock"


class Watched(Network):
    """Looks into the frames between hosts by itself, and counts what it sees: the truth that accounts are held against."""

    def __init__(self, program: str = RELAY, seed: int = 0, hosts: int = 3, vms: int = 1) -> None:
        self.parts: Counter[tuple[int, int, int]] = Counter()  # by sender, receiver, round
        self.messages: Counter[tuple[int, int, int]] = Counter()
        super().__init__(case_of(Program(program), "tso"), seed, 0.3, hosts, vms)

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()
        for host in self.hosts:
            host.close()

    def wire(self, me: int) -> Callable[[int, bytes], None]:
        send = super().wire(me)

        def watch(peer: int, data: bytes) -> None:
            for part in decode(data).parts if me >= 0 and peer >= 0 else ():
                if part.vm >= 0:
                    self.parts[me, peer, part.round] += 1
                    self.messages[me, peer, part.round] += len(part.messages)
            send(peer, data)

        return watch

    def moves(self, number: int) -> None:
        """So many, or as many as there are."""
        for _ in range(number):
            if self.move() is None:
                return

    def abort(self, lost: int) -> tuple[set[int], Accounts]:
        """The driver hears of a death; (numbers of the aborted rounds, accounts)."""
        rounds, accounts = self.conductor.give_up(lost)
        return {number for _, number in rounds}, accounts

    def settle(self, accounts: Accounts) -> Account:
        while not accounts.closed():
            assert self.move() is not None, "nothing moves, and the accounts are open"
        return accounts.settle()


def truth(seen: Counter[tuple[int, int, int]], rounds: set[int], senders: set[int], receivers: set[int]) -> int:
    return sum(
        n
        for (sender, receiver, round_), n in seen.items()
        if {sender} <= senders and {receiver} <= receivers and round_ in rounds
    )


@settings(max_examples=250)
@given(
    PROGRAMS, st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 3),
    st.tuples(st.integers(0, 120), st.integers(0, 40)), st.one_of(st.none(), st.integers(0, 30)), st.data(),
)  # fmt: skip
def test_all_that_was_sent_was_got_or_in_flight_or_went_to_the_lost(
    program: str, seed: int, hosts: int, vms: int, when: tuple[int, int], again: int | None, data: st.DataObject
) -> None:
    """Whenever a host dies, however far channels are drained then, and if another one dies while the accounts are made."""
    with Watched(program, seed, hosts, vms) as net:
        hosts = net.size
        victims = data.draw(st.permutations(range(hosts)))[:2]
        for vm in range(vms):
            net.conductor.begin(vm, vm)
        net.moves(when[0])
        net.kill(victims[0])
        net.moves(when[1])  # until the driver hears of it
        over = {vm for vm, _ in net.conductor.collecting}
        rounds, accounts = net.abort(victims[0])
        if again is not None and hosts > 1:
            net.moves(again)
            if not accounts.closed():
                net.kill(victims[1])
                accounts.drop(victims[1])
        account = net.settle(accounts)
        gone, left = set(accounts.gone), set(accounts.left)
        assert len(gone) == account.gone and gone == set(victims[: len(gone)])
        for kind, seen, amounts in (("parts", net.parts, account.parts), ("messages", net.messages, account.messages)):
            played = rounds - over
            done = truth(seen, over, gone | left, gone | left) if kind == "parts" else 0
            assert amounts.sent == truth(seen, played, left, gone | left) + done
            assert amounts.delivered + amounts.in_flight == truth(seen, played, left, left) + done
            assert amounts.lost == truth(seen, played, left, gone)
            assert amounts.from_lost <= truth(seen, played, gone, left)
            assert amounts.sent == amounts.delivered + amounts.in_flight + amounts.lost
        net.replace(*accounts.gone)
        for number in range(10, 12):
            assert net.play(number).status == "terminal", "nothing of the aborted round is left in the next"
        assert all(host._takers[0] == host.engines[0].take for host in net.hosts), "what has stopped plays on as ever"


def test_messages_are_caught_in_flight_and_counted_on_both_sides_of_the_cut() -> None:
    """Were channels always empty when a host dies, the test above would show little."""
    kinds: Counter[str] = Counter()
    for seed in range(60):
        with Watched(seed=seed) as net:
            net.conductor.begin(0, 0)
            net.moves(seed)
            net.kill(seed % 3)
            _, accounts = net.abort(seed % 3)
            kinds.update({name: int(amount > 0) for name, amount in net.settle(accounts).parts._asdict().items()})
    assert min(kinds.values()) > 5 and len(kinds) == 5, kinds


@pytest.mark.parametrize("tally", ["sent", "received", "spoken", "heard"])
def test_a_counter_that_is_broken_is_noticed_and_the_pair_named(tally: str) -> None:
    """A check that cannot fail is no check: one host counts one too many for another."""
    with Watched() as net:
        net.conductor.begin(0, 0)
        net.moves(30)
        net.kill(2)
        getattr(net.hosts[0].engines[0], tally)[1] += 1
        _, accounts = net.abort(2)
        pair = "host 0 had sent .* to host 1," if tally in ("sent", "spoken") else "host 1 had sent .* to host 0,"
        with pytest.raises(ClusterError, match=f"round 0 was aborted, and not all of it is accounted for: {pair} which had got"):
            net.settle(accounts)


def test_a_frame_that_vanishes_before_the_mark_is_noticed() -> None:
    """The link refuses what follows it; the account would not add up either."""
    with Watched() as net:
        net.conductor.begin(0, 0)
        while not net.queues.get((0, 1)):
            net.move()
        net.kill(2)
        net.queues[0, 1].pop()
        _, accounts = net.abort(2)
        with pytest.raises(ClusterError, match=r"host 1 got frame \d+ of host 0, expected"):
            net.settle(accounts)


def test_what_the_dead_had_got_is_not_more_than_was_sent_to_it() -> None:
    """It is all that the driver can hold the words of a lost host against."""
    counts = Counts(2)
    counts.put(1, False, (3, 0), (9, 0))
    accounts = Accounts(2, 1, {(0, 5): counts}, [])
    accounts.hear(0, 0, 5, (STOPPED, (0, 8), (0, 2), (0, 20), (0, 5)))
    assert accounts.closed()
    with pytest.raises(ClusterError, match=r"round 5 .* host 0 had sent 8 parts to host 1, which had got 9 before it was lost"):
        accounts.settle()
    counts.put(1, False, (3, 0), (7, 0))
    assert accounts.settle() == Account(Amounts(8, 0, 0, 8, 2), Amounts(20, 0, 0, 20, 5))


def test_a_mark_that_overtakes_the_driver_stops_the_round_as_well() -> None:
    """Two channels do not keep an order between them: the mark of a peer may come before the driver's word, even to begin."""
    with Watched(hosts=2) as net:
        net.conductor.begin(0, 0)
        late = net.queues.pop((DRIVER, 1))
        for _ in range(3):
            net.moves(5)
        net.hosts[1].receive(encode("run", 0, 0, net.hosts[0].link._sent.get(1, 0) + 1 - len(net.queues.get((0, 1), ())), [
            (NO_VM, 0, 0, [(MARK, 0, 0, (0, 1))])
        ]))  # fmt: skip
        engine = net.hosts[1].engines[0]
        assert engine.round == 0 and not engine.busy and not engine.outbox
        for frame in late:
            net.hosts[1].receive(frame)
        net.hosts[1].turn()
        assert (engine.busy, engine.round) == (False, 0), "that the round begins is no news any more"
        said = [one for data in net.queues[1, DRIVER] for part in decode(data).parts for one in part.messages]
        assert [one[0] for one in said] == [STOPPED, ARRIVED]


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ((NO_VM, 0, 0, [(MARK, 7, 0, (0, 1))]), "stops a round that it cannot"),
        ((NO_VM, 0, 0, [(MARK, 0, 0, (1, 2))]), "stops a round that it cannot"),
        ((NO_VM, 0, 0, [(MARK, 0, 0, (0, 1, 9))]), "stops a round that it cannot"),
        ((NO_VM, 0, 0, [(MARK, 0, 0, (0, 1, "2"))]), "stops a round that it cannot"),
        ((NO_VM, 0, 0, [(CUT, (0, 1))]), "a message for no machine"),
        ((0, 0, 0, [(MARK, 0, 0, (0, 1))]), "for, the driver only"),
        ((NO_VM, 0, 0, [(MARK, 0, 0, (0, 1))] * 2), "stops round 0 a second time"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(part: Any, why: str) -> None:
    """Whoever could stop a round of others could hide what it had sent in it."""
    with Watched() as net:
        net.conductor.begin(0, 0)
        host = net.hosts[1]
        host.receive(net.queues[DRIVER, 1].popleft())
        host.receive(encode("run", 0, 0, 1, [part]))
        host.turn()
        assert failure(net, 1).startswith("a frame of host 0 ") and why in failure(net, 1)


def failure(net: Network, host: int) -> str:
    """What a host has told the driver of its failure."""
    said = [one for data in net.queues[host, DRIVER] for part in decode(data).parts for one in part.messages]
    (text,) = (one[2] for one in said if one[0] == FAILURE)
    return str(text)


def test_whoever_goes_on_after_its_mark_is_refused() -> None:
    """It would be counted by nobody."""
    with Watched() as net:
        engine = net.hosts[1].engines[0]
        cut = Cut(engine, 3, (0, 1))
        cut.take(0, 3, 1, [(ARRIVED,), (ARRIVED,)])
        cut.take(2, 3, 1, [(ARRIVED,)])  # a lost one's
        cut.take(0, 2, 1, [(ARRIVED,)])  # of another round
        assert cut.open == {0: (1, 2)}
        del cut.open[0]
        with pytest.raises(FrameError, match="a frame of host 0 goes on with round 3, which host 0 had stopped"):
            cut.take(0, 3, 1, [])


def test_rounds_that_are_not_aborted_say_nothing_of_all_this() -> None:
    """What an account costs is paid when a host is lost and not before."""
    with Watched() as net:
        tags: Counter[int] = Counter()
        for n in range(5):
            net.conductor.begin(0, n)
            while not (done := net.move()):
                tags.update(
                    one[0]
                    for queue in net.queues.values()
                    for data in queue
                    for part in decode(data).parts
                    for one in part.messages
                )
            net.judge(done[0])
        assert tags and not tags.keys() & {MARK, CUT, STOPPED, ARRIVED}


def test_an_account_is_said_in_one_clause() -> None:
    """It stands at the end of a line about a host."""
    assert str(Account(Amounts(31, 12, 12, 7, 3), Amounts())) == "in flight 12 parts, lost with the host 7"
    assert str(Account(Amounts(lost=1234), Amounts(), 2)) == "in flight 0 parts, lost with the hosts 1,234"


@pytest.mark.parametrize("said", [(STOPPED, (0,), (0, 0), (0, 0), (0, 0)), (STOPPED, (0, "1"), (0, 0), (0, 0), (0, 0))])
def test_an_account_for_other_hosts_than_there_are_is_refused(said: Message) -> None:
    """Its sender is named."""
    accounts = Accounts(2, 1, {(0, 5): Counts(2)}, [])
    accounts.hear(0, 1, 5, said)  # of a machine that played nothing: late
    with pytest.raises(FrameError, match="a frame of host 0 accounts for other hosts"):
        accounts.hear(0, 0, 5, said)
