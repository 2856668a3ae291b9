"""What a user gets from `pip install racevisor` is the wheel, not this repository; so the wheel is what is tried here.

Everything is offline: the wheel is built with the pinned setuptools of the running environment, and the empty environment
sees the third-party packages of the running one through a .pth file. A .pth file inside a directory that a .pth file added is
not read, so the editable install of this repository stays invisible there.
"""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from shutil import copy2, copytree, ignore_patterns
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("actors", "racevisor", "cluster", "scenarios")


class Installed(NamedTuple):
    wheel: Path
    home: Path  # the environment
    elsewhere: Path  # a directory of somebody else

    def run(self, program: str, *arguments: str) -> str:
        done = call([str(self.home / "bin" / program), *arguments], cwd=self.elsewhere)
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("wheel").resolve()

    # A copy, because setuptools builds in the tree and would pick up what an older build left there.
    source = base / "source"
    source.mkdir()
    for package in PACKAGES:
        copytree(ROOT / package, source / package, ignore=ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        copy2(ROOT / file, source / file)
    pip = [sys.executable, "-m", "pip"]
    offline = ["--no-index", "--no-deps", "--disable-pip-version-check", "--quiet"]
    call([*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(base / "dist"), str(source)], cwd=base)
    (wheel,) = (base / "dist").glob("racevisor-*.whl")

    # Without pip in it, which would take most of the time of this test: pip can install into another environment.
    home = base / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    call([*pip, "--python", str(home / "bin" / "python"), "install", *offline, str(wheel)], cwd=base)
    (site_packages,) = home.glob("lib/python3.*/site-packages")
    theirs = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site_packages / "third_party.pth").write_text("\n".join(theirs) + "\n", encoding="utf-8")

    # Somebody else's directory may well have folders named like ours.
    elsewhere = base / "elsewhere"
    for package in ("scenarios", "actors"):
        (elsewhere / package).mkdir(parents=True)
        (elsewhere / package / "__init__.py").write_text("raise ImportError('not yours')\n", encoding="utf-8")
    return Installed(wheel, home, elsewhere)


def call(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run to the end, and on failure show what it said: pytest prints the assertion, not a captured stream."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["COLUMNS"] = "120"
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_every_package_comes_from_the_wheel_and_not_from_this_repository(installed: Installed) -> None:
    """Otherwise the tests below would pass with an empty wheel."""
    program = f"import importlib\nfor name in {PACKAGES}: print(importlib.import_module(name).__file__)"
    for file in installed.run("python", "-I", "-c", program).split():
        assert Path(file).is_relative_to(installed.home), file


def test_the_command_finds_the_built_in_scenarios_from_a_foreign_directory(installed: Installed) -> None:
    """Scenarios are loaded by path, so they have to be files in the wheel, and found without the repository around them."""
    assert "init_sipi" in installed.run("racevisor", "list")


def test_the_wheel_carries_our_packages_with_their_types_and_nothing_else(installed: Installed) -> None:
    """A wheel that also installs `tests` or `benchmarks` at top level takes these names away from its user."""
    with zipfile.ZipFile(installed.wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert [package for package in PACKAGES if f"{package}/py.typed" not in names] == []
    assert "racevisor/conform/vectors.jsonl.gz" in names


def test_every_module_of_the_repository_is_in_the_wheel(installed: Installed) -> None:
    """A folder without an __init__.py works in the repository and is silently missing from the wheel."""
    with zipfile.ZipFile(installed.wheel) as archive:
        shipped = set(archive.namelist())
    ours = {file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert ours - shipped == set()


def test_what_the_page_of_a_report_is_made_of_is_in_the_wheel(installed: Installed) -> None:
    """Style and script are no modules: a packager has to be told of them."""
    with zipfile.ZipFile(installed.wheel) as archive:
        shipped = set(archive.namelist())
    ours = {file.relative_to(ROOT).as_posix() for file in (ROOT / "racevisor" / "report" / "static").iterdir()}
    assert ours
    assert ours - shipped == set()
