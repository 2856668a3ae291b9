"""`racevisor step`: the keys, on a screen of 80 by 24 characters that nobody sees."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from textual.widgets import Static

from racevisor import api
from racevisor.cli import cli
from racevisor.commands.step import Heads, Stepping, Steps, unused
from racevisor.errors import UsageError
from racevisor.walk import Walk


@pytest.fixture
def walk() -> Walk:
    """The lost INIT, at its end."""
    found = api.explore("init_sipi", "before", memory="tso")
    assert found.reason is not None
    return Walk(found.case, found.reason.witness.schedule)


def text(app: Stepping, part: str) -> str:
    return str(app.query_one(f"#{part}", Static).render())


@pytest.mark.asyncio
async def test_keys_walk_on_and_back_and_show_the_state_there(walk: Walk, tmp_path: Path) -> None:
    """It begins at the end, where the broken check stands."""
    app = Stepping(walk, tmp_path / "lost.trace")
    async with app.run_test(size=(80, 24)) as pilot:
        end = len(walk.picks)
        assert walk.at == end and app.query_one(Steps).row_count == end
        assert "I-I2" in text(app, "broken") and f"after {end} of {end} steps" in text(app, "title")
        await pilot.press("left", "p", "k")
        assert walk.at == end - 3 and text(app, "broken") == ""
        assert "posted, and in flight" in text(app, "state")
        await pilot.press("n", "home", "left")
        assert walk.at == 0 and text(app, "state") == "as at the start"
        await pilot.press("pagedown", "end", "right")
        assert walk.at == end
        await pilot.press("f")
        first = walk.at
        await pilot.press("f")
        assert first < walk.at == end


@pytest.mark.asyncio
async def test_a_digit_takes_another_head_and_s_saves_the_way(walk: Walk, tmp_path: Path) -> None:
    """What was recorded after it is dropped; what is saved replays."""
    app = Stepping(walk, tmp_path / "lost.trace")
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("f", "left")
        other = next(n for n, head in enumerate(walk.heads(), 1) if not head.recorded)
        at = walk.at
        assert app.query_one(Heads).option_count == len(walk.heads())
        await pilot.press(str(other))
        assert walk.parted == at and walk.at == len(walk.picks) == app.query_one(Steps).row_count == at + 1
        assert f"by hand from step {at} on" in text(app, "title")
        await pilot.press("9", "e", "a", "s")
        assert walk.heads() == [] or walk.broken
    again = api.replay(tmp_path / "lost-by-hand-1.trace")
    assert again.identical and len(again.recorded.picks) == len(walk.picks)
    assert unused(tmp_path / "lost.trace").name == "lost-by-hand-2.trace"


@pytest.mark.asyncio
async def test_a_folder_that_cannot_be_written_is_told_and_nothing_is_lost(walk: Walk, tmp_path: Path) -> None:
    """The walk goes on."""
    (tmp_path / "file").touch()
    app = Stepping(walk, tmp_path / "file" / "lost.trace")
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("s", "left")
        assert walk.at == len(walk.picks) - 1


def test_without_a_terminal_it_says_what_to_do_instead() -> None:
    """In a pipe there is nobody who could press a key."""
    result = CliRunner().invoke(cli, ["step", "some.trace"], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
    assert "racevisor replay some.trace" in str(result.exception)
