"""The short interleavings of racevisor.picture as rows of a table, so that a page can set them as it likes."""

from __future__ import annotations

from dataclasses import dataclass

from racevisor.picture import FATAL, LINES, PLAIN, UNICODE, Picture

#: columns are as wide as their words need, up to this many characters for each thread
_WIDE = 72
_MOST = 400


@dataclass(frozen=True)
class Row:
    """One line: the step, if it begins one; is it marked; a text and its style (see racevisor.picture) for each column."""

    step: int | None
    marked: bool
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Story:
    """An interleaving that fits on a page.  `columns` is empty if there are too many threads: then a row has one cell."""

    title: str
    key: str  # of the run whose steps these are
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    below: tuple[str, ...]  # what is said below it


def story(picture: Picture, *, title: str, key: str, below: tuple[str, ...] = (), lines: int = LINES) -> Story:
    """Draw it, and take it apart again."""
    width = min(_MOST, _WIDE * len(picture.actors) + 8)
    drawn = picture.draw(width, glyphs=UNICODE, lines=lines)
    if drawn and drawn[0][0][0].strip() == "step":
        columns = tuple(text.strip() for text, _ in drawn[0][2::2])
        rows = [
            Row(_number(line[0][0]), line[0][1] == FATAL, tuple((text.rstrip(), style) for text, style in line[2::2]))
            for line in drawn[2:]
        ]
    else:
        columns = ()
        rows = []
        for line in drawn:
            text = "".join(part for part, _ in line).rstrip()
            style = line[-1][1]
            words = text.split()
            number = _number(" ".join(words[:2]) if words[:1] == [UNICODE.fatal] else words[0] if words else "")
            rows.append(Row(number, style == FATAL, ((text, style if style else PLAIN),)))
    told = (*below, "~ a posted store reaches memory: from here on others see it") if picture.landings_shown else below
    return Story(title, key, columns, tuple(rows), told)


def _number(margin: str) -> int | None:
    text = margin.replace(UNICODE.fatal, "").strip()
    return int(text) if text.isdigit() else None
