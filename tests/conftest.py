"""What tests share: one Ray for all of them."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def embedded_ray() -> Iterator[None]:
    """An embedded Ray, started when the first test asks for it; live runs find it there and leave it alone."""
    from cluster.session import Session

    session = Session()
    session.address = None  # whatever RAY_ADDRESS says: tests do not play on somebody's cluster
    session.open()
    yield
    session.close()
