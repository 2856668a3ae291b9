"""What tests share: one Ray for all of them, and the executions that are shrunk and explained."""

from collections.abc import Iterator

import pytest


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
    """An embedded Ray, started when the first test asks for it; live runs find it there and leave it alone."""
    from cluster.session import Session

    session = Session()
    session.address = None  # whatever RAY_ADDRESS says: tests do not play on somebody's cluster
    session.open()
    yield
    session.close()
