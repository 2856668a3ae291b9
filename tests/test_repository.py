"""The arrows of design and ARCHITECTURE.md: actors <- racevisor <- cluster, and scenarios on top. And what else holds of files.

Imports are read from the syntax tree and never executed, so that an import inside a function, or under `if TYPE_CHECKING`,
counts as well.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("actors", "racevisor", "cluster", "scenarios")
STANDARD = sys.stdlib_module_names
# What makes two runs of one schedule differ.
NOT_FOR_ACTORS = {"asyncio", "random", "secrets", "threading", "multiprocessing", "concurrent", "time", "datetime"}
LONGEST = 500


class Import(NamedTuple):
    file: Path  # relative to the repository
    line: int
    module: str  # absolute: "actors.ops"
    name: str  # what is taken from it, or ""
    in_function: bool

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file.as_posix()}:{self.line} imports {self.module}{'.' + self.name if self.name else ''}"


def imports_of(root: Path, *packages: str) -> list[Import]:
    return [
        found
        for package in packages
        for file in sorted((root / package).rglob("*.py"))
        for found in imports_in(ast.parse(file.read_text(encoding="utf-8")), file.relative_to(root), in_function=False)
    ]


def imports_in(node: ast.AST, file: Path, in_function: bool) -> Iterator[Import]:
    match node:
        case ast.Import():
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, "", in_function)
        case ast.ImportFrom():
            # One dot is the package of the file, which for __init__.py and for modules alike is the folder.
            above = file.parts[: len(file.parts) - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(file, node.lineno, module, alias.name, in_function)
        case ast.Call(
            func=ast.Name(id="__import__") | ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]
        ):
            yield Import(file, node.lineno, module, "", in_function)
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from imports_in(child, file, inside)


def strangers_of_actors(root: Path) -> list[str]:
    return [
        str(found)
        for found in imports_of(root, "actors")
        if found.package != "actors" and (found.package not in STANDARD or found.package in NOT_FOR_ACTORS)
    ]


def upward_imports_of_racevisor(root: Path) -> list[str]:
    front_doors = (Path("racevisor", "cli.py"), Path("racevisor", "api.py"))
    return [
        str(found)
        for found in imports_of(root, "racevisor")
        if found.package in ("ray", "scenarios")
        or (found.package == "cluster" and not (found.file in front_doors and found.in_function))
    ]


def strangers_of_scenarios(root: Path) -> list[str]:
    def allowed(found: Import) -> bool:
        if found.package == "racevisor":
            is_submodule = (root / "racevisor" / f"{found.name}.py").exists() or (
                root / "racevisor" / found.name / "__init__.py"
            ).exists()
            return found.module == "racevisor" and not (found.name and is_submodule)
        return found.package == "actors" or (found.package in STANDARD and found.package not in NOT_FOR_ACTORS)

    return [str(found) for found in imports_of(root, "scenarios") if not allowed(found)]


def test_actors_import_only_the_standard_library_and_each_other() -> None:
    """The same actor code runs under every runtime, so it may know none; and nothing in it may differ between two runs."""
    assert strangers_of_actors(ROOT) == []


def test_the_lab_knows_the_cluster_only_inside_functions_of_its_front_doors() -> None:
    """`racevisor list`, `explore` and `replay` start in a blink and work where Ray cannot run."""
    assert upward_imports_of_racevisor(ROOT) == []


def test_only_the_cluster_imports_ray() -> None:
    """One package to change when Ray changes."""
    assert [
        str(found) for found in imports_of(ROOT, *PACKAGES) if found.package == "ray" and found.file.parts[0] != "cluster"
    ] == []


def test_one_module_alone_imports_structlog() -> None:
    """Names and fields of events are decided in one place; the rest says what happened, not how it is written down."""
    modules = {found.file.as_posix() for found in imports_of(ROOT, *PACKAGES) if found.package == "structlog"}
    assert len(modules) == 1, modules
    assert modules.pop().startswith("racevisor/")


def test_scenarios_use_what_a_stranger_could_use() -> None:
    """A built-in scenario is the example that users copy: the public API at the top of racevisor, actors, nothing private."""
    assert strangers_of_scenarios(ROOT) == []


def test_the_check_of_the_arrows_sees_imports_that_hide(tmp_path: Path) -> None:
    """A rule that cannot fail is no rule: each line below is one way around it."""
    write(
        tmp_path / "actors" / "a.py",
        "def f():\n    from time import time\nimport msgpack\nfrom . import b\nfrom .b import c\nimport enum",
    )
    write(tmp_path / "racevisor" / "cli.py", "import cluster\ndef main():\n    import cluster.live")
    write(tmp_path / "racevisor" / "world.py", "def f():\n    import cluster\nimport importlib\nimportlib.import_module('ray')")
    write(
        tmp_path / "scenarios" / "s.py",
        "from racevisor import Scenario, world\nfrom racevisor.world import World\nfrom actors.a import f",
    )
    assert strangers_of_actors(tmp_path) == ["actors/a.py:2 imports time.time", "actors/a.py:3 imports msgpack"]
    assert upward_imports_of_racevisor(tmp_path) == [
        "racevisor/cli.py:1 imports cluster",
        "racevisor/world.py:2 imports cluster",
        "racevisor/world.py:4 imports ray",
    ]
    assert strangers_of_scenarios(tmp_path) == [
        "scenarios/s.py:1 imports racevisor.world",
        "scenarios/s.py:2 imports racevisor.world.World",
    ]


def test_no_file_is_longer_than_500_lines() -> None:
    """What does not fit in one's head at once gets split while it is still easy."""
    files = [file for folder in (*PACKAGES, "tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: length for file, length in lengths.items() if length > LONGEST} == {}


def test_no_folder_of_the_tests_is_named_like_a_package() -> None:
    """tests/actors/ would be imported instead of actors/, and the tests would be about the wrong module."""
    folders = {folder.name for folder in (ROOT / "tests").rglob("*") if folder.is_dir()}
    assert folders & {*PACKAGES, "ray"} == set()


def test_the_lock_pins_every_dependency_with_hashes_and_names_no_place() -> None:
    """It is installed with --no-deps afterwards, so a dependency that is missing here would only fail at run time."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(r"^([a-z0-9][a-z0-9._-]*)==[^\n]*\\\n(?: +--hash=sha256:[0-9a-f]{64}[^\n]*\n)+", lock, re.MULTILINE)
    pinned = re.findall(r"^[^ #\n][^ =]*", lock, re.MULTILINE)
    assert pinned == entries, "every line is a pin with hashes, and no line is an option"
    assert "://" not in lock
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=!~\[; ]", one)[0] for one in wanted} - set(entries) == set()


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n", encoding="utf-8")
