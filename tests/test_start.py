"""The first tenth of a second of a command, in which Python imports what it is made of."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import racevisor
from actors.thread import Thread
from racevisor.scenario import Scenario
from racevisor.step import Step

ROOT = str(Path(__file__).resolve().parent.parent)

#: What a console script does, while Ctrl-C comes just when the module that is named first is looked for.
INTERRUPTED = """
import signal, sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
from racevisor.cli import main
sys.exit(main(sys.argv[2:]))
"""


def interrupted(module: str, *command: str, code: str = INTERRUPTED) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.run(
        [sys.executable, "-c", code, module, *command], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("json", ["--help"]),
        ("click", ["list"]),
        ("click.core", ["--help"]),
        ("racevisor.choose", ["explore", "init_sipi"]),
        ("racevisor.commands.catalogue", ["list"]),
        ("cluster.live", ["run", "init_sipi"]),
    ],
)
def test_ctrl_c_while_a_command_is_imported_is_no_traceback(module: str, command: list[str]) -> None:
    """Whoever changes his mind at once sees what everybody else does who presses Ctrl-C: one line, and status 130."""
    done = interrupted(module, *command)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, "", "racevisor: interrupted")


def test_ctrl_c_while_a_command_is_imported_is_told_in_json() -> None:
    """Standard output holds one object, also when something fails."""
    for module in ("click", "racevisor.commands.catalogue"):
        done = interrupted(module, "list", "--json")
        assert (done.returncode, json.loads(done.stdout)) == (130, {"error": "interrupted", "exit_status": 130})


def test_a_command_that_was_told_to_ignore_ctrl_c_ignores_it() -> None:
    """nohup, or a shell that has put it into the background: that is settled, and not ours to change."""
    ignoring = INTERRUPTED.replace("class CtrlC", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nclass CtrlC")
    done = interrupted("click", "list", code=ignoring)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("was", [signal.default_int_handler, signal.SIG_IGN])
def test_who_imports_the_command_line_finds_ctrl_c_as_it_was(was: Any) -> None:
    """The tests, or somebody's own tool; what was started in the background of a shell has it ignored."""
    code = "from signal import *; was = getsignal(SIGINT); import racevisor.cli; assert getsignal(SIGINT) is was"
    before = signal.signal(signal.SIGINT, was)
    try:
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ROOT}, check=True)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_public_names_are_there_when_they_are_asked_for() -> None:
    """The package itself is imported in no time, so that the command line can answer Ctrl-C first."""
    assert (racevisor.Thread, racevisor.Scenario, racevisor.Step) == (Thread, Scenario, Step)
    assert all(hasattr(racevisor, name) for name in racevisor.__all__)
    with pytest.raises(AttributeError, match="module 'racevisor' has no attribute 'Nothing'"):
        racevisor.Nothing  # type: ignore[attr-defined]  # noqa: B018
    code = "import sys, racevisor; assert not [m for m in sys.modules if m.startswith(('racevisor.', 'actors'))]"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": ROOT})
