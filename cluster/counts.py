"""How many parts hosts say to have sent to and got from each other, and who must have counted too early."""

from __future__ import annotations


class Counts:
    """The latest counts of each of `hosts`; nobody has counted yet, which is to be busy.  Channels keep their order."""

    def __init__(self, hosts: int) -> None:
        nothing = (0,) * hosts
        self.sent = [nothing] * hosts
        self.received = [nothing] * hosts
        self.busy = set(range(hosts))  # who was, when he counted
        self.unheard = set(range(hosts))
        self.exchanged = False  # has anybody sent or got anything?
        self.unequal: set[tuple[int, int]] = set()  # (sender, receiver) that differ

    def put(self, host: int, busy: bool, sent: tuple[int, ...], received: tuple[int, ...]) -> None:
        """`host` counted, after all its earlier counts."""
        self.sent[host], self.received[host] = sent, received
        self.unheard.discard(host)
        self.exchanged = self.exchanged or any(sent) or any(received)
        (self.busy.add if busy else self.busy.discard)(host)
        for other in range(len(self.sent)):
            if other != host:
                self._compare(host, other)
                self._compare(other, host)

    def _compare(self, sender: int, receiver: int) -> None:
        if self.sent[sender][receiver] != self.received[receiver][sender]:
            self.unequal.add((sender, receiver))
        else:
            self.unequal.discard((sender, receiver))

    def early(self) -> set[int]:
        """Who has since got what another had sent, or sent what another had got."""
        return {
            receiver if self.sent[sender][receiver] > self.received[receiver][sender] else sender
            for sender, receiver in self.unequal
        }
