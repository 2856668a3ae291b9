"""What --help shows, and options that do not go together."""

import pytest

from racevisor.cli import cli, main


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_fits_a_terminal_of_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its tables, which are not wrapped."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [("explore", "--budget", "5s"), ("explore", "--variant", "after"), ("explore", "--to-the-end"), ("stress", "--vms", "2")],
)
def test_what_is_resumed_takes_no_option_that_it_would_not_heed(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A budget that is not kept is worse than none."""
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--resume", "there"])
    assert f"there goes on as it was begun\n  leave out {arguments[1]}, or" in capsys.readouterr().err
