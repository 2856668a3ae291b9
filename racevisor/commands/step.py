"""`racevisor step FILE`: walk a trace in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Footer, OptionList, Static
from textual.widgets.option_list import Option

from racevisor import trace
from racevisor.errors import RacevisorError, UsageError
from racevisor.walk import Walk

CHOICES = 9  # heads that a digit takes


def step_trace(file: Path, scenario: str | None) -> int:
    """Returns the exit status."""
    recorded = trace.load(file)
    case = trace.case_of(recorded, file, scenario)
    walk = Walk(case, recorded.picks, past_violations=recorded.recorded_by == trace.LIVE)
    try:
        Stepping(walk, file).run()
    finally:
        walk.close()
    return 0


def unused(file: Path) -> Path:
    """A name beside `file` that is not taken."""
    for n in range(1, 1000):
        path = file.with_name(f"{file.stem}-by-hand-{n}.trace")
        if not path.exists():
            return path
    raise UsageError(f"there are 999 traces by hand beside {file}\n  move some of them away")


class Steps(DataTable[Text], can_focus=False):
    """Follows the walk; the keys are the app's."""


class Heads(OptionList, can_focus=False):
    """What could come next; taken by a digit or a click."""


class Stepping(App[None]):
    """Left the steps, right the state after the present one and what could come next."""

    CSS = """
    #title { height: auto; padding: 0 1; background: $panel; }
    #steps { width: 3fr; overflow-x: hidden; scrollbar-size: 1 1; }
    #side { width: 2fr; border-left: solid $panel-lighten-2; }
    #state { height: 1fr; overflow-y: auto; padding: 0 1; }
    #heads { height: auto; max-height: 40%; border: none; border-top: solid $panel-lighten-2; }
    #broken { height: auto; max-height: 6; padding: 0 1; color: $text-error; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,down,j,n", "by(1)", "next"),
        Binding("left,up,k,p", "by(-1)", "back"),
        Binding("pagedown", "by(10)", show=False),
        Binding("pageup", "by(-10)", show=False),
        Binding("home,g", "to_start", show=False),
        Binding("end,G", "to_end", show=False),
        Binding("f", "fatal", "fatal"),
        Binding("1", "take(1)", "take", key_display="1-9"),
        *(Binding(str(n), f"take({n})", show=False) for n in range(2, CHOICES + 1)),
        Binding("e", "finish", "go on"),
        Binding("a", "every", "cells"),
        Binding("s", "save", "save"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, walk: Walk, file: Path) -> None:
        super().__init__()
        self.walk = walk
        self.file = file
        self.every = False

    def compose(self) -> ComposeResult:
        """The parts, from the top."""
        yield Static(id="title")
        with Horizontal():
            yield Steps(id="steps", cursor_type="row")
            with Vertical(id="side"):
                yield Static(id="state")
                yield Heads(id="heads")
        yield Static(id="broken")
        yield Footer()

    def on_mount(self) -> None:
        """Begin at the end: there it is seen what went wrong."""
        self.title = str(self.walk.case)
        table = self._steps
        table.add_columns("", "step", "thread", "what")
        self._fill()
        self._show()

    @property
    def _steps(self) -> Steps:
        return self.query_one("#steps", Steps)

    # ---- keys -------------------------------------------------------------------------------------------------------------

    def action_by(self, steps: int) -> None:
        """Some steps on, or back."""
        self._go(self.walk.at + steps)

    def action_to_start(self) -> None:
        """Before the first step."""
        self._go(0)

    def action_to_end(self) -> None:
        """After the last one."""
        self._go(len(self.walk.picks))

    def action_fatal(self) -> None:
        """After the next of the steps that the broken checks name; after the last of them, then the first again."""
        here = self.walk.at
        self.walk.go(len(self.walk.picks))
        fatal = self.walk.fatal
        if not fatal:
            self.walk.go(here)
            self.notify("no check names a step of this execution")
            return
        self._go(next((n + 1 for n in fatal if n + 1 > here), fatal[0] + 1))

    def action_take(self, number: int) -> None:
        """Let another head move; what was recorded after this is dropped."""
        heads = self.walk.heads()
        if number > len(heads):
            return
        self.walk.take(heads[number - 1].channel)
        self._fill()
        self._show()

    def action_finish(self) -> None:
        """From the end of the picks on to where nothing can move."""
        self.walk.finish()
        self._fill()
        self._show()

    def action_every(self) -> None:
        """All cells, or only those that are not as they were at the start."""
        self.every = not self.every
        self._show()

    def action_save(self) -> None:
        """The present picks, as a trace beside the one that was opened."""
        try:
            path = unused(self.file)
            self.walk.save(path)
        except RacevisorError as error:
            self.notify(str(error), severity="error", timeout=10)
        else:
            self.notify(f"racevisor replay {path}", title="saved", timeout=10)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """A step was clicked: show the state after it."""
        self._go(event.cursor_row + 1)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A head was chosen in the list."""
        self.action_take(event.option_index + 1)

    # ---- what is shown ----------------------------------------------------------------------------------------------------

    def _go(self, where: int) -> None:
        self.walk.go(where)
        self._show()

    def _fill(self) -> None:
        """The rows anew, from where they differ."""
        table, walk = self._steps, self.walk
        here = walk.at
        walk.go(len(walk.picks))
        fatal = set(walk.fatal)
        walk.go(here)
        table.clear()
        for told in walk.told:
            style = "bold red" if told.n in fatal else "italic" if walk.parted is not None and told.n >= walk.parted else ""
            mark = ">" if told.n in fatal else ""
            table.add_row(*(Text(part, style=style) for part in (mark, str(told.n), told.thread, str(told))))

    def _show(self) -> None:
        walk = self.walk
        own = "" if walk.parted is None else f", by hand from step {walk.parted} on"
        last = walk.told[walk.at - 1] if walk.at else None
        title = Text(f"{walk.case}: after {walk.at} of {len(walk.picks)} steps{own}\n", "bold")
        title.append(f"step {last.n}, {last.thread}: {last}" if last is not None else "nothing has happened yet", "not bold")
        self.query_one("#title", Static).update(title)
        self._steps.move_cursor(row=max(0, walk.at - 1))
        self._steps.show_cursor = walk.at > 0
        self.query_one("#state", Static).update(self._state())
        heads = self.query_one("#heads", Heads)
        heads.clear_options()
        for n, head in enumerate(walk.heads(), 1):
            key = str(n) if n <= CHOICES else " "
            heads.add_option(Option(Text(f"{key} {head.thread}: {head.words}", style="bold" if head.recorded else "")))
        self.query_one("#broken", Static).update(Text("\n".join(walk.broken)))

    def _state(self) -> Text:
        walk = self.walk
        text = Text()
        owner = ""
        for value in walk.values(every=self.every):
            if value.owner != owner:
                owner = value.owner
                text.append(f"{owner}\n", "bold")
            style = "reverse" if value.touched else "dim" if value.first else ""
            text.append(f"  {value.name} = {value.value}\n", style)
        for heading, lines in (("posted, and in flight", walk.posted()), ("waits", walk.waiting())):
            if lines:
                text.append(f"{heading}\n", "bold")
                text.append("".join(f"  {line}\n" for line in lines))
        if not text:
            text.append("as at the start", "dim")
        return text
