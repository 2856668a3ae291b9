"""Hosts that go from one live run to the next, for tests that are not about how hosts start.

A process takes most of a second of a core to start, and `prepare` tells a host everything anew: that is what `LiveRun.switch`
lives on.  The processes are real, play as they always do, and may be killed.
"""

import sys
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.hosts import Hosts

#: by machine, the hosts that nobody plays on
IDLE: dict[str, list[Any]] = {}


class WarmHosts(Hosts):
    """Takes hosts that are idle before it makes new ones, and leaves those that are well."""

    def _make(self, host: int, name: str | None = None) -> Any:
        idle = IDLE.get(self.plan.machines[host].id)
        if idle and name is None:  # one that takes another's place is looked up by its name
            return idle.pop()
        return super()._make(host, name)

    def kill(self, *, there: bool) -> None:
        """Keep the hosts of a run that ended well, unless they do not answer; whoever had an error may not be well."""
        if there and not self.pulse.lost and sys.exc_info()[0] is None:
            self.stop()
            rest = []
            for machine, handle in zip(self.plan.machines, self.handles, strict=True):
                with suppress(RayError):
                    ray.get(handle.close.remote(), timeout=10)
                    IDLE.setdefault(machine.id, []).append(handle)
                    continue
                rest.append(handle)
            self.handles = rest
        super().kill(there=there)
