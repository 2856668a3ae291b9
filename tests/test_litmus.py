"""The classic litmus shapes under sc, tso and pso, against what is known of them.

Names and outcomes are those of the literature: Alglave, Maranget, Tautschnig, Herding Cats (TOPLAS 2014); n5 and n6 from Owens,
Sarkar, Sewell, A Better x86 Memory Model: x86-TSO (TPHOLs 2009).  Each row: the program, the observed registers and cells, the
weak outcome, and how many outcomes there are under sc, tso and pso.  A model that shows the weak outcome has it among them.
"""

from typing import NamedTuple

import pytest
from programs import by_brute_force, by_source_dpor, valuations, world

from racevisor.memory import MODELS


class Shape(NamedTuple):
    program: str
    observed: str
    weak: tuple[int, ...]
    shown_by: tuple[str, ...]
    outcomes: tuple[int, int, int]


NONE: tuple[str, ...] = ()
STORE_BUFFERS = ("tso", "pso")
PSO = ("pso",)

SHAPES = {
    "SB": Shape("x=1 r0=y | y=1 r1=x", "r0 r1", (0, 0), STORE_BUFFERS, (3, 4, 4)),
    "SB+mbs": Shape("x=1 mb r0=y | y=1 mb r1=x", "r0 r1", (0, 0), NONE, (3, 3, 3)),
    "SB+mb+po": Shape("x=1 mb r0=y | y=1 r1=x", "r0 r1", (0, 0), STORE_BUFFERS, (3, 4, 4)),
    "SB+wmbs": Shape("x=1 wmb r0=y | y=1 wmb r1=x", "r0 r1", (0, 0), STORE_BUFFERS, (3, 4, 4)),
    "SB+rmbs": Shape("x=1 rmb r0=y | y=1 rmb r1=x", "r0 r1", (0, 0), STORE_BUFFERS, (3, 4, 4)),
    "SB+releases": Shape("x:=1 r0=y | y:=1 r1=x", "r0 r1", (0, 0), STORE_BUFFERS, (3, 4, 4)),
    "SB+xchgs": Shape("x<>1 r0=y | y<>1 r1=x", "r0 r1", (0, 0), NONE, (3, 3, 3)),
    "MP": Shape("x=1 y=1 | r0=y r1=x", "r0 r1", (1, 0), PSO, (3, 3, 4)),
    "MP+wmb": Shape("x=1 wmb y=1 | r0=y r1=x", "r0 r1", (1, 0), NONE, (3, 3, 3)),
    "MP+rmb": Shape("x=1 y=1 | r0=y rmb r1=x", "r0 r1", (1, 0), PSO, (3, 3, 4)),
    "MP+wmb+rmb": Shape("x=1 wmb y=1 | r0=y rmb r1=x", "r0 r1", (1, 0), NONE, (3, 3, 3)),
    "MP+release": Shape("x=1 y:=1 | r0=y r1=x", "r0 r1", (1, 0), NONE, (3, 3, 3)),
    "MP+release-first": Shape("x:=1 y=1 | r0=y r1=x", "r0 r1", (1, 0), PSO, (3, 3, 4)),
    "MP+mb": Shape("x=1 mb y=1 | r0=y r1=x", "r0 r1", (1, 0), NONE, (3, 3, 3)),
    "MP+set_bit": Shape("x=1 y@0 | r0=y r1=x", "r0 r1", (1, 0), PSO, (3, 3, 4)),
    "MP+wmb+set_bit": Shape("x=1 wmb y@0 | r0=y r1=x", "r0 r1", (1, 0), NONE, (3, 3, 3)),
    "LB": Shape("r0=x y=1 | r1=y x=1", "r0 r1", (1, 1), NONE, (3, 3, 3)),
    "LB+mbs": Shape("r0=x mb y=1 | r1=y mb x=1", "r0 r1", (1, 1), NONE, (3, 3, 3)),
    "CoRR": Shape("x=1 | r0=x r1=x", "r0 r1", (1, 0), NONE, (3, 3, 3)),
    "CoWR": Shape("x=1 r0=x | x=2", "r0 x", (2, 1), NONE, (3, 3, 3)),
    "CoWW": Shape("x=1 x=2", "x", (1,), NONE, (1, 1, 1)),
    "IRIW": Shape("x=1 | y=1 | r0=x r1=y | r2=y r3=x", "r0 r1 r2 r3", (1, 0, 1, 0), NONE, (15, 15, 15)),
    "WRC": Shape("x=1 | r0=x y=1 | r1=y r2=x", "r0 r1 r2", (1, 1, 0), NONE, (7, 7, 7)),
    "WRC+release": Shape("x=1 | r0=x y:=1 | r1=y rmb r2=x", "r0 r1 r2", (1, 1, 0), NONE, (7, 7, 7)),
    "2+2W": Shape("x=2 y=1 | y=2 x=1", "x y", (2, 2), PSO, (3, 3, 4)),
    "2+2W+wmbs": Shape("x=2 wmb y=1 | y=2 wmb x=1", "x y", (2, 2), NONE, (3, 3, 3)),
    "2+2W+wmb+po": Shape("x=2 wmb y=1 | y=2 x=1", "x y", (2, 2), PSO, (3, 3, 4)),
    "2+2W+releases": Shape("x=2 y:=1 | y=2 x:=1", "x y", (2, 2), NONE, (3, 3, 3)),
    "R": Shape("x=1 y=1 | y=2 r0=x", "y r0", (2, 0), STORE_BUFFERS, (3, 4, 4)),
    "R+mbs": Shape("x=1 mb y=1 | y=2 mb r0=x", "y r0", (2, 0), NONE, (3, 3, 3)),
    "S": Shape("x=2 y=1 | r0=y x=1", "r0 x", (1, 2), PSO, (3, 3, 4)),
    "S+wmb": Shape("x=2 wmb y=1 | r0=y x=1", "r0 x", (1, 2), NONE, (3, 3, 3)),
    "n5": Shape("x=1 r0=x | x=2 r1=x", "r0 r1", (2, 1), NONE, (3, 3, 3)),
    "n6": Shape("x=1 r0=x r1=y | y=2 x=2", "r0 r1 x", (1, 0, 1), STORE_BUFFERS, (4, 5, 6)),
}


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_litmus_shape_has_exactly_its_known_outcomes(name: str, memory: str) -> None:
    """A model that allows too much reports races that no machine has; one that allows too little says Never and lies."""
    shape = SHAPES[name]
    reduced = by_source_dpor(world(shape.program, memory))
    full = by_brute_force(world(shape.program, memory))
    outcomes = valuations(full.ends, shape.observed)
    assert valuations(reduced.ends, shape.observed) == outcomes
    assert (shape.weak in outcomes) == (memory in shape.shown_by)
    assert len(outcomes) == shape.outcomes[MODELS.index(memory)]


@pytest.mark.parametrize("memory", MODELS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_litmus_shape_is_executed_once_per_trace_class(name: str, memory: str) -> None:
    """Nothing is missed and nothing complete is run twice; what brute force adds is interleavings of the same classes."""
    program = SHAPES[name].program
    reduced = by_source_dpor(world(program, memory), classes=True)
    full = by_brute_force(world(program, memory), classes=True)
    assert len(reduced.classes) == len(set(reduced.classes))
    assert set(reduced.classes) == set(full.classes)
