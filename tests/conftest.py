"""What tests share: one Ray and its hosts for all of them, and the executions that are shrunk and explained."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

#: The same examples in every run, and no deadline: a machine that is busy, or a search that meets a big one, is no mistake.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")


#: Fixtures that are made once in a process and cost more than the tests that ask for them: one worker takes all their files.
SHARED = ("embedded_ray", "bad_cell")
#: Files that take long come first: whoever got one last would be alone with it, while the others have nothing left to do.
LONG = ("embedded_ray", "test_two_nodes.py", "test_report_browser.py", "test_wheel.py")


@cache
def unit(file: Path) -> str:
    """What is handed out to a worker at once: a file, or the files that share a fixture."""
    text = file.read_text(encoding="utf-8")
    return next((name for name in SHARED if name in text), file.name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long units first, all else as it was found."""
    items.sort(key=lambda item: LONG.index(unit(item.path)) if unit(item.path) in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but with units instead of files, and in their order."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # it ships no types

    class LoadUnits(LoadFileScheduling):  # type: ignore[misc]
        """A worker that has Ray waits for processes most of the time, while the others compute."""

        def _split_scope(self, nodeid: str) -> str:
            return unit(config.rootpath / super()._split_scope(nodeid))

    config.option.loadscopereorder = False
    return LoadUnits(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole-corpus`: every variant that goes wrong is shrunk and explained, not only one of each kind; minutes."""
    parser.addoption("--whole-corpus", action="store_true", help="shrink and explain every variant that goes wrong: minutes")
    parser.addoption("--rewrite-golden", action="store_true", help="write what the golden tests see, instead of comparing")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `bad_cell` is run for each of the corpus."""
    if "bad_cell" in metafunc.fixturenames:
        from corpus import bad_cells

        chosen = list(bad_cells(all_of_them=metafunc.config.getoption("whole_corpus")))
        metafunc.parametrize("bad_cell", chosen, ids=str, scope="session")


@pytest.fixture(scope="session")
def embedded_ray() -> Iterator[None]:
    """An embedded Ray, started when the first test asks for it; live runs find it there, with the hosts of the one before."""
    from warm import IDLE, WarmHosts

    from cluster.session import Session

    session = Session()
    session.address = None  # whatever RAY_ADDRESS says: tests do not play on somebody's cluster
    session.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cluster.live.Hosts", WarmHosts)
        yield
    IDLE.clear()
    session.close()
