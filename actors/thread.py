"""A plain thread of control, for scenarios that race without a whole vCPU."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from actors.actor import Actor


class Thread(Actor):
    """Runs `body(thread)`; `private` declares its registers: `Thread(vm, "P0", p0, r0=None)`."""

    def __init__(self, vm: Any, name: str, body: Callable[[Any], Coroutine[Any, Any, Any]], **private: Any) -> None:
        super().__init__(vm, name)
        self.body = body
        self.private(**private)

    def run(self) -> Coroutine[Any, Any, Any]:
        """The body is the thread."""
        return self.body(self)
