"""Print the figures.  `python -m benchmarks steps dpor` prints only these; `make bench ARGS="steps dpor"` likewise."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks import searches, steps
from benchmarks.measure import say

SECTIONS: dict[str, Callable[[], None]] = {
    "steps": steps.main,
    "dpor": searches.dpor,
    "states": searches.states,
    "apart": searches.apart,
    "shell": searches.shell,
}


def main() -> None:
    """All sections, or those named on the command line."""
    wanted = sys.argv[1:] or list(SECTIONS)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        sys.exit(f"there is no benchmark {', '.join(unknown)}\n  benchmarks: {', '.join(SECTIONS)}")
    for name in wanted:
        say(f"---- {name}")
        SECTIONS[name]()


if __name__ == "__main__":
    main()
