"""Is the Ray that we play on still there?  Asked before Ray itself notices, and without Ray.

A driver that loses its GCS is ended by Ray after a minute, in the middle of whatever it does and without a word to it, and until
then some calls into Ray wait for ever.  So whoever calls what may wait does it through `Pulse.call`, and the loop of the rounds
asks `check` now and then; both raise ClusterError while there is still time to print what was found.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import ray

from racevisor.errors import ClusterError

#: How often it is asked, in seconds.
LOOK = 0.5
#: How long somebody else's cluster may be away, in seconds: a GCS with a store of its own is started again.
PATIENCE = 5.0
#: How long a connection may take, in seconds.  One that takes longer is slow, and not gone.
CONNECT = 1.0

T = TypeVar("T")


class Pulse:
    """Watches (name, host, port) of Ray's processes; `ended` says that a process of our own that they need has ended.

    Nobody at a port for `patience` seconds: gone.
    """

    def __init__(
        self,
        ports: Sequence[tuple[str, str, int]] = (),
        ended: Callable[[], bool] = lambda: False,
        patience: float = PATIENCE,
    ) -> None:
        self.ports = list(ports)
        self.ended = ended
        self.patience = patience
        self.lost = ""
        self._since: dict[str, float] = {}
        self._looked = 0.0

    def check(self) -> None:
        """ClusterError if the cluster is gone; cheap, and looks twice a second at most."""
        now = time.monotonic()
        if not self.lost and now - self._looked >= LOOK:
            self._looked = now
            self._look(now)
        if self.lost:
            raise ClusterError(
                f"the Ray cluster is gone: {self.lost}\n  what was finished is kept; go on when a cluster is there again"
            )

    def _look(self, now: float) -> None:
        if self.ended():
            self.lost = "the process that had started it here has ended"
        for name, host, port in self.ports:
            try:
                socket.create_connection((host, port), timeout=CONNECT).close()
            except TimeoutError:
                pass
            except OSError as error:
                if now - self._since.setdefault(name, now) >= self.patience:
                    self.lost = f"its {name} at {host}:{port} does not answer ({error.strerror or error})"
            else:
                self._since.pop(name, None)

    def call(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; ClusterError when the cluster is gone meanwhile, and Ctrl-C gets through.

        A thread that waits for a cluster that is gone is left behind: it holds nothing.
        """
        answers: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                answers.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="ray", daemon=True)
        thread.start()
        thread.join(0.05)
        while thread.is_alive():
            self.check()
            thread.join(0.05)
        if errors:
            raise errors[0]
        return answers[0]


def pulse_here(ended: Callable[[], bool], patience: float) -> Pulse:
    """The pulse of the cluster that this process has joined: its GCS, and the raylet of our own machine."""
    ports: list[tuple[str, str, int]] = []
    with contextlib.suppress(Exception):  # through ray:// neither is known: then Ray's client says what there is to say
        context = ray.get_runtime_context()
        host, _, port = str(context.gcs_address).rpartition(":")
        ports.append(("GCS", host.strip("[]"), int(port)))
        me = context.get_node_id()
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["NodeID"] == me:
                ports.append(("raylet", node["NodeManagerAddress"], int(node["NodeManagerPort"])))
    return Pulse(ports, ended, patience)
