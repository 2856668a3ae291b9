"""Print the figures.  `python -m benchmarks steps dpor` prints only these; `make bench ARGS="steps dpor"` likewise.

`python -m benchmarks soak --minutes 10 --vcpus 256` (make soak) plays on Ray, and looks for leaks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import report, searches, steps
from benchmarks.measure import say

#: the parts of `live`
LIVE = ("throughput", "size", "start", "rounds", "transports")


def live(*names: str) -> Callable[[], None]:
    """Imported only when it is asked for, because it imports Ray."""

    def work() -> None:
        from benchmarks import live as section

        section.main(names)

    return work


def analysis() -> None:
    """Minutes of making logs: only when it is asked for."""
    from benchmarks import analysis as section

    section.main()


def workers() -> None:
    """Imported only when it is asked for, because it imports Ray."""
    from benchmarks import workers as section

    section.main()


SECTIONS: dict[str, Callable[[], None]] = {
    "steps": steps.main,
    "dpor": searches.dpor,
    "states": searches.states,
    "apart": searches.apart,
    "shell": searches.shell,
    "report": report.main,
    "analysis": analysis,
    "workers": workers,
    "live": live(*LIVE),
    **{f"live-{name}": live(name) for name in LIVE},
}


def main() -> None:
    """All sections but `workers`, or those named on the command line; `soak` is alone, and has options.  Both take minutes."""
    if sys.argv[1:2] == ["soak"]:
        from benchmarks import soak  # imports Ray

        sys.exit(soak.main(sys.argv[2:]))
    wanted = sys.argv[1:] or [name for name in SECTIONS if name != "workers" and not name.startswith("live-")]
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}\n  benchmarks: {', '.join(SECTIONS)}")
    for name in wanted:
        say(f"---- {name}")
        SECTIONS[name]()


if __name__ == "__main__":
    main()
