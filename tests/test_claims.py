"""A sample of what the built-in scenarios claim; `racevisor verify` searches all 6,900 claims, and is part of what CI runs."""

from collections.abc import Iterator

import pytest
from claims import refuted

from racevisor.memory import MODELS
from racevisor.scenario import Case, built_in, in_table, load

#: set-ups of which a cell may take seconds
SLOW = {"init_sipi": ("irq", "edge_irqs", "two_rounds", "migration")}


def sample(name: str) -> Iterator[Case]:
    """A cell of every variant; its set-ups and the memory models take turns."""
    scenario, source = load(name)
    for n, variant in enumerate(scenario.variants):
        there = [s for s in scenario.setups if in_table(scenario, variant, s) and s not in SLOW.get(name, ())]
        yield Case(scenario, source, variant, there[n % len(there)], MODELS[n % len(MODELS)])


@pytest.mark.parametrize("name", built_in())
def test_a_cell_of_every_variant_bears_out_its_claim(name: str) -> None:
    """Whoever changes a scenario sees within seconds that a variant is not what it was; which cells, `verify` says."""
    assert refuted(sample(name)) == []
