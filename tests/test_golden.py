"""What the terminal shows of the five patches, at 80 and at 120 columns, character by character and without colour.

After a change that is meant:  make test ARGS="--rewrite-golden tests/test_golden.py", and read the difference.
"""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from racevisor import api
from racevisor.commands.why import print_reason

GOLDEN = Path(__file__).resolve().parent / "golden"
RACES = {
    "init_sipi": "plain",
    "mmu_notifier": "munmap",
    "memslot_deletion": "fault",
    "synic_message": "page_poll",
    "hypercall_patching": "smp",
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", RACES)
def test_the_picture_of_a_race_is_what_it_was(name: str, width: int, request: pytest.FixtureRequest) -> None:
    """An interleaving is what people come for: nothing in it changes by accident."""
    found = api.explore(name, "before", RACES[name])
    assert found.reason is not None
    text = StringIO()
    out = Console(file=text, width=width, color_system=None, highlight=False, markup=False, emoji=False)
    print_reason(out, found.reason, full=False)
    shown = "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())
    file = GOLDEN / f"{name}-{width}.txt"
    if request.config.getoption("rewrite_golden"):
        file.write_text(shown, encoding="utf-8")
    assert shown.isascii()
    assert shown == file.read_text(encoding="utf-8")
