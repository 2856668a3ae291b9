"""An engine whose host keeps a log of steps: it also says what it sends to other hosts, and what it gets from them.

Nothing of it is in the engine itself, so that hosts without a log pay nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from actors.ops import Code
from cluster.engine import Engine
from cluster.messages import ACCESS, ANSWER, FIELDS, FLUSH, FLUSHED, IPI, Message

_OPS = {int(code): code.name.lower() for code in Code}


def _op(message: Message) -> str:
    """What is asked for, as far as the message itself says it."""
    return _OPS.get(message[3], "") if message[0] == ACCESS else "store" if message[0] == FLUSH else ""


class LoggedEngine(Engine):
    """`sent` and `received` for each message between hosts, besides the steps and tracepoints of every engine.

    The n-th message sent on a channel (`0>1`: from host 0 to host 1) is the n-th received there.  Sending and receiving each
    advance the clock, as Lamport has it (CACM 21(7), 1978), so that also these events sort causally; the order of steps, which
    only has to respect causes, stays one that the World repeats.
    """

    def _clear(self) -> None:
        super()._clear()
        self._numbered: Counter[tuple[int, int]] = Counter()  # messages so far, by (from, to)
        self._asked: dict[tuple[int, int, int], tuple[float, str]] = {}  # when, and which op, by (tag, thread, cell)

    def leaving(self) -> dict[int, list[Message]]:
        """What there is to say to other hosts; a `sent` for each message."""
        outbox = super().leaving()
        now = time.perf_counter()
        for host, messages in outbox.items():
            for one in messages:
                tag, thread = one[0], one[1]
                op = _op(one)
                if tag in (ACCESS, FLUSH):
                    self._asked[tag, thread, one[2] if tag == FLUSH else -1] = now, op
                self.clock += 1
                self._say("sent", one, self.me, host, op, None)
        return outbox

    def take(self, sender: int, round_: int, clock: int, messages: Sequence[Message]) -> None:
        """What another host said; a `received` for each message of a round that is not over."""
        if round_ >= self.round:
            self.begin(round_)
            self.clock = max(self.clock, clock)
            now = time.perf_counter()
            for one in messages:
                if one[0] in (ACCESS, ANSWER, FLUSH, FLUSHED, IPI) and 0 <= one[1] < len(self.names):
                    self.clock += 1
                    asked = self._question(one)
                    self._say(
                        "received", one, sender, self.me, asked[1] if asked else _op(one), now - asked[0] if asked else None
                    )
        super().take(sender, round_, clock, messages)

    def _question(self, answer: Message) -> tuple[float, str] | None:
        if answer[0] == ANSWER:
            return self._asked.pop((ACCESS, answer[1], -1), None)
        return self._asked.pop((FLUSH, answer[1], answer[2]), None) if answer[0] == FLUSHED else None

    def _say(self, event: str, message: Message, sender: int, receiver: int, op: str, seconds: float | None) -> None:
        self._numbered[sender, receiver] += 1
        tag = message[0]
        fields: dict[str, Any] = {
            "message": FIELDS[tag][0],
            "channel": f"{sender}>{receiver}",
            "n": self._numbered[sender, receiver],
        }
        if op:
            fields["op"] = op
        if tag in (ACCESS, FLUSH, FLUSHED) and 0 <= message[2] < len(self.vm.cells):
            fields["cell"] = self.vm.cells[message[2]].label
        if seconds is not None:
            fields["seconds"] = round(seconds, 7)
        self._tell(message[1], event, fields)
