"""States are told from each other by the cells that can change, and which these are is known only while a search goes on."""

from actors.actor import Cell
from actors.ops import READ_ONCE, WRITE_ONCE, Op
from actors.vm import Vm
from racevisor.written import Written


def machine() -> tuple[list[Cell], list[Op | None], Written]:
    """Three cells at 0, and what is written of them while no op is known."""
    vm = Vm()
    vm.guest_memory(x=0, y=0, z=0)
    cells = vm.cells
    ops: list[Op | None] = []
    return cells, ops, Written(cells, ops, lambda _pcpu: None)


def test_a_cell_that_is_only_read_tells_no_state_from_another() -> None:
    """And one that is written to does, in the order in which that was found out."""
    (x, y, z), ops, written = machine()
    ops += [READ_ONCE(x), WRITE_ONCE(z, 1), None, WRITE_ONCE(y, 1)]
    assert written.cells == [z, y]


def test_a_state_is_the_same_value_before_and_after_one_more_cell_is_known_to_be_written_to() -> None:
    """Or it would be searched twice, and counted twice."""
    (x, y, z), ops, written = machine()
    ops.append(WRITE_ONCE(x, 1))
    x.value = 1
    before = written.state()
    ops += [WRITE_ONCE(y, 1), WRITE_ONCE(z, 1)]
    assert written.state() == before
    seen = [before]
    for y.value, z.value in ((1, 0), (0, 1), (1, 1)):
        assert written.state() not in seen
        seen.append(written.state())
    y.value = z.value = 0
    assert written.state() == before


def test_a_cell_that_nobody_was_known_to_write_to_goes_back_to_its_first_value() -> None:
    """It was not part of the snapshot, for nobody had written to it then."""
    (x, y, _), ops, written = machine()
    ops.append(WRITE_ONCE(x, 1))
    cells, values = written.cells, [cell.value for cell in written.cells]
    ops.append(WRITE_ONCE(y, 1))
    x.value = y.value = 1
    written.restore(cells, values)
    assert (x.value, y.value) == (0, 0)
