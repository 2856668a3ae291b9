"""One Mazurkiewicz trace, written down with few context switches.

Neighbouring steps that commute may be exchanged (A. Mazurkiewicz: Trace Theory, 1987), so any order that keeps happens-before is
the same execution.  To let a column go on for as long as it can is never worse: what it has done early, another order would
have to come back for.  So it is enough to try which column is next, and breadth first finds the fewest switches.
"""

from __future__ import annotations

from collections.abc import Sequence

from racevisor.dependence import HappensBefore
from racevisor.step import IPI, STORE_BUFFER, Step
from racevisor.world import World

_WIDE = 4_000  # so many orders are kept at a time where that is cheap, and one where executions are long


def causes(world: World, steps: Sequence[Step]) -> list[int]:
    """Per step the steps that happen before it, as bitmasks."""
    order = HappensBefore(world)
    for step in steps:
        order.extend(world.channels[step.channel], step)
    return order.past


def needed(steps: Sequence[Step], past: Sequence[int], last: int) -> tuple[list[Step], list[int]]:
    """Only the steps that happen before step `last`, and that one; with their causes, renumbered."""
    kept = [n for n in range(last + 1) if past[last] >> n & 1 or n == last]
    place = {n: i for i, n in enumerate(kept)}
    renumbered = [sum(1 << place[m] for m in bits(past[n])) for n in kept]
    return [steps[n] for n in kept], renumbered


def linearized(steps: Sequence[Step], past: Sequence[int]) -> list[Step]:
    """The same steps in an order with few switches: the fewest there are, unless the execution is long."""
    columns = list(dict.fromkeys(step.thread for step in steps))
    rows: dict[str, list[tuple[str, list[int]]]] = {column: [] for column in columns}
    for n, step in enumerate(steps):
        # a store that has been posted, or an IPI that was sent, is noticed where it arrives: so that comes first
        name = step.channel if step.kind in (STORE_BUFFER, IPI) else step.thread
        known = dict(rows[step.thread])
        if name not in known:
            rows[step.thread].append((name, [n]))
            rows[step.thread].sort(key=lambda row: row[0] == step.thread)
        else:
            known[name].append(n)
    all_done = (1 << len(steps)) - 1
    wide = max(1, min(_WIDE, 2_000_000 // (len(steps) * len(columns) + 1)))

    def run(column: str, done: int) -> tuple[int, list[int]]:
        taken: list[int] = []
        going = True
        queues = [[n for n in row if not done >> n & 1] for _, row in rows[column]]
        at = [0] * len(queues)
        while going:
            going = False
            for i, queue in enumerate(queues):
                if at[i] < len(queue) and not past[queue[at[i]]] & ~done:
                    n = queue[at[i]]
                    at[i] += 1
                    done |= 1 << n
                    taken.append(n)
                    going = True
                    break
        return done, taken

    level: dict[int, tuple[str, tuple[object, list[int]] | None]] = {0: ("", None)}
    while all_done not in level:
        following: dict[int, tuple[str, tuple[object, list[int]] | None]] = {}
        for done, (last, way) in level.items():
            for column in columns:
                if column != last:
                    reached, taken = run(column, done)
                    if taken and reached not in following:
                        following[reached] = (column, (way, taken))
        if len(following) > wide:
            most = sorted(following, key=int.bit_count, reverse=True)[:wide]
            following = {done: following[done] for done in most}
        level = following
    pieces: list[list[int]] = []
    way = level[all_done][1]
    while way is not None:
        pieces.append(way[1])
        way = way[0]  # type: ignore[assignment]
    return [steps[n] for piece in reversed(pieces) for n in piece]


def posts_late(steps: Sequence[Step], past: Sequence[int]) -> list[int]:
    """An order (numbers of `steps`) in which a store is posted where it reaches memory, if that is in a later turn of its column.

    What its column does from the post to the end of the turn moves along to the next turn, if nobody depends on it meanwhile: so
    there are no more switches, and a picture shows one store and not two halves.
    """
    order = list(range(len(steps)))
    lands: dict[int, int] = {}
    waiting: dict[tuple[str, object], list[int]] = {}
    for n, step in enumerate(steps):
        if step.posted:
            waiting.setdefault((step.thread, step.cell), []).append(n)
        elif step.kind == STORE_BUFFER:
            lands[waiting[step.thread, step.cell].pop(0)] = n
    for post in sorted(lands, reverse=True):
        column = steps[post].thread
        at = order.index(post)
        end = at
        while end < len(order) and steps[order[end]].thread == column:
            end += 1
        again = next((i for i in range(end, len(order)) if steps[order[i]].thread == column), None)
        if lands[post] in order[at:end] or again is None:
            continue
        moved = sum(1 << n for n in order[at:end])
        if not any(past[n] & moved for n in order[end:again]):
            order[at:again] = [*order[end:again], *order[at:end]]
    return order


def bits(mask: int) -> list[int]:
    """The numbers of the bits that are set, rising."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
