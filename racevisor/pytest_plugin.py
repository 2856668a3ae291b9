"""A pytest plugin: a scenario file that is given to pytest becomes one test for each claim.

    pytest races/my_race.py                            # every cell of its table
    pytest races/my_race.py -k "fixed and pso"         # some of them
    pytest races/my_race.py --racevisor-budget 10s

A file is a scenario file if it defines a class that inherits from `Scenario` and is named on the command line, or matches the
ini option `racevisor_files`; a file of tests (`python_files`) is left to pytest.  A claim that is not confirmed fails its test:
it shows the shrunk interleaving, the two steps whose order decides, and the line that replays it.  A strategy that samples
skips what it does not refute.  Nothing is searched, and no scenario is executed, that was not asked for.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from racevisor.explore import Verdict
    from racevisor.scenario import Case

NARROWEST = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `racevisor explore` takes."""
    group = parser.getgroup("racevisor", "racevisor: one test for each claim of a scenario file")
    group.addoption("--racevisor-strategy", metavar="NAME", help="how each claim is searched (racevisor explore --help)")
    group.addoption("--racevisor-budget", metavar="TIME", help="per claim, such as 10s or 2min")
    group.addoption("--racevisor-runs", metavar="N", type=int, help="executions per claim")
    group.addoption("--racevisor-seed", metavar="N", type=int, default=0, help="of strategies that sample")
    group.addoption("--racevisor-vcpus", metavar="N", type=int, help="instead of the scenario's own number")
    group.addoption(
        "--racevisor-memory", metavar="MODEL", action="append", default=[], help="only the claims for sc, tso or pso; repeatable"
    )
    group.addoption("--racevisor-trace-dir", metavar="DIR", type=Path, help="where the traces of failed claims go (runs/NAME)")
    parser.addini("racevisor_files", "globs of scenario files that pytest collects by itself, like races/*.py", "args", [])


def pytest_configure(config: pytest.Config) -> None:
    """Options that do not go together are an error before anything is collected."""
    if config.getoption("racevisor_strategy") or config.getoption("racevisor_budget"):
        from racevisor.errors import UsageError

        try:
            _options(config)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """The file's claims, if it is a scenario file that was asked for."""
    if file_path.suffix != ".py":
        return None
    config = parent.config
    inside = file_path.relative_to(config.rootpath).as_posix() if file_path.is_relative_to(config.rootpath) else ""
    if any(fnmatch(inside, glob) for glob in config.getini("racevisor_files")) or (
        parent.session.isinitpath(file_path) and not any(fnmatch(file_path.name, glob) for glob in config.getini("python_files"))
    ):
        return ScenarioFile.from_parent(parent, path=file_path) if _defines_a_scenario(file_path) else None
    return None


def _defines_a_scenario(path: Path) -> bool:
    """By its text: what is not given to us is not executed by us."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return False  # pytest says what is wrong with it
    bases = (base for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases)
    return any((base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")) == "Scenario" for base in bases)


def _options(config: pytest.Config) -> dict[str, Any]:
    """The fields of racevisor.choose.Wanted that were asked for."""
    from racevisor import choose
    from racevisor.budget import parse

    asked = {name: config.getoption(f"racevisor_{name}") for name in ("strategy", "budget", "runs", "seed")}
    given = {name: value for name, value in asked.items() if value is not None}
    if "budget" in given:
        given["budget"] = parse(given["budget"])
    choose.kind(choose.Wanted(**given))
    return given


class ScenarioFile(pytest.File):
    """A file with one scenario."""

    def collect(self) -> Iterable[ClaimItem]:
        """An item for each cell of its table, in the table's order."""
        from racevisor.errors import RacevisorError
        from racevisor.explore import cases

        config = self.config
        try:
            wanted = cases(
                _shortest(self.path), (), (), config.getoption("racevisor_memory"), config.getoption("racevisor_vcpus")
            )
        except RacevisorError as error:
            raise self.CollectError(str(error)) from error
        for case in wanted:
            name = f"{case.variant_name}-{case.setup}-{case.memory}"
            yield ClaimItem.from_parent(self, name=name, case=case)


class ClaimFailed(Exception):
    """The search did not bear a claim out; `text` is all there is to say."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class ClaimItem(pytest.Item):
    """One claim: a variant, in a set-up, under a memory model."""

    def __init__(self, *, case: Case, **rest: Any) -> None:
        super().__init__(**rest)
        self.case = case

    def runtest(self) -> None:
        """Search it."""
        from racevisor import choose
        from racevisor.commands.explore import refuted
        from racevisor.explore import explore_case

        options = _options(self.config)
        verdict = explore_case(self.case, **options)
        self.user_properties += [("verdict", verdict.verdict), ("executions", verdict.executions), ("states", verdict.states)]
        if verdict.confirmed:
            return
        if not choose.kind(choose.Wanted(**options)).covers and not refuted(verdict):
            pytest.skip(f"{verdict.claimed} is neither confirmed nor refuted: strategy {verdict.strategy} proves nothing")
        raise ClaimFailed(self._report(verdict))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was found instead; a traceback only where the scenario itself raised."""
        from racevisor.errors import RacevisorError

        if isinstance(excinfo.value, ClaimFailed):
            return excinfo.value.text
        if isinstance(excinfo.value, RacevisorError):
            return f"{self.case}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[os.PathLike[str], None, str]:
        """Shown by -v and in the heading of a failure."""
        return self.path, None, f"{self.case.scenario.name}: {self.name}"

    def _report(self, verdict: Verdict) -> str:
        from rich.console import Console

        from racevisor.commands.explore import record, refuted
        from racevisor.commands.output import print_paste_lines
        from racevisor.commands.why import print_reason
        from racevisor.reason import Wish, reason

        width = max(NARROWEST, self.config.get_terminal_writer().fullwidth)
        text = StringIO()
        out = Console(file=text, width=width, highlight=False, markup=False, emoji=False, color_system=None)
        said = f"{self.case} claims {verdict.claimed}"
        out.print(f"{said}, and the search found: {verdict.finding}" if refuted(verdict) else f"{said}: that was not decided")
        out.print(verdict.ledger.sentence())
        if verdict.witness is not None:
            told = reason(self.case, verdict.witness, Wish())
            verdict.witness = told.witness
            seed = self.config.getoption("racevisor_seed")
            path, problem = record(self.case, verdict, self.config.getoption("racevisor_trace_dir"), seed)
            out.print()
            print_reason(out, told, full=False)
            print_paste_lines(out, self.case, path)
            if problem is not None:
                out.print(str(problem))
        return text.getvalue().rstrip()


def _shortest(path: Path) -> str:
    """As one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
