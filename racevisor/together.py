"""Outcomes of many actors in one readable line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def some(names: Sequence[str], most: int = 4) -> str:
    """The names; of more than `most`, the first ones and how many there are besides: `vcpu1, vcpu2 and 62 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def alike(ends: Iterable[tuple[str, str]], apart: int = 2) -> str:
    """How the actors ended, given as (name, what to print behind it): together where that is the same.

    No more than `apart` of them are told one by one.
    """
    told = list(ends)
    if len(told) <= apart:
        return "; ".join(name + end for name, end in told)
    groups: dict[str, list[str]] = {}
    for name, end in told:
        groups.setdefault(end, []).append(name)
    return "; ".join(some(names) + end for end, names in groups.items())
