"""`racevisor list` and `racevisor show`: what there is, in the words of the scenario files."""

from __future__ import annotations

import ast
import inspect
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import click

from actors.vm import KERNEL_FUNCTIONS
from racevisor.commands.source import name_of, source_of
from racevisor.errors import RacevisorError
from racevisor.memory import MODELS
from racevisor.scenario import Never, Scenario, Setup, Source, Variant, built_in, claim, in_table, load, require

_SIDE_BY_SIDE = 120


def list_scenarios(as_json: bool) -> None:
    """One line for each built-in scenario."""
    entries: list[dict[str, Any]] = []
    for name in built_in():
        try:
            scenario, source = load(name)
        except RacevisorError as error:
            entries.append({"name": name, "error": str(error)})
            continue
        about = story(scenario, source).split("\n\n", 1)[0].replace("\n", " ")
        entries.append({"name": name, "about": about, "variants": list(scenario.variants), "setups": list(scenario.setups)})
    if as_json:
        from racevisor.commands.output import print_json

        print_json({"scenarios": entries})
        return
    width = shutil.get_terminal_size().columns
    wide = max((len(entry["name"]) for entry in entries), default=0)
    for entry in entries:
        about = entry.get("error") or (f"{entry['about']} {len(entry['variants'])} variants, {len(entry['setups'])} set-ups.")
        lines = textwrap.wrap(about, max(20, width - wide - 2))
        for i, line in enumerate(lines):
            click.echo(f"{entry['name'] if i == 0 else '':<{wide}}  {line}")
    click.echo("\nmore about one:  racevisor show NAME      search it:  racevisor explore NAME")


def story(scenario: Scenario, source: Source) -> str:
    """The scenario's own words: the docstring of its file, else that of its class."""
    return ast.get_docstring(ast.parse(source.text)) or inspect.getdoc(type(scenario)) or "(it has no docstring)"


def show_scenario(name: str, wanted: tuple[str, ...], with_source: bool, as_json: bool) -> None:
    """Story, patch, variants, set-ups, claims; with `with_source` the replaced functions themselves."""
    from racevisor.commands.output import print_json, quiet_if

    with quiet_if(as_json):
        scenario, source = load(name)
        for one in wanted:
            require("variant", one, scenario.variants, scenario.name)
    chosen = {key: variant for key, variant in scenario.variants.items() if not wanted or key in wanted}
    if as_json:
        print_json(_as_json(scenario, source, chosen))
    elif with_source:
        for key, variant in chosen.items():
            _print_source(scenario, source, key, variant)
    else:
        _print_story(scenario, source, chosen)


def _as_json(scenario: Scenario, source: Source, chosen: dict[str, Variant]) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "patch": scenario.patch,
        "story": story(scenario, source),
        "sha256": source.digest,
        "setups": {key: setup.about for key, setup in scenario.setups.items()},
        "variants": {
            key: {
                "about": variant.about,
                "replaces": {kernel: name_of(function) for kernel, function in variant.replaces.items()},
                "exempt": dict(variant.exempt),
            }
            for key, variant in chosen.items()
        },
        "claims": [
            {"variant": key, "setup": setup, "memory": memory, "claimed": claim(scenario, variant, setup, memory)}
            for key, variant in chosen.items()
            for setup in scenario.setups
            if in_table(scenario, key, setup)
            for memory in MODELS
        ],
    }


def _print_story(scenario: Scenario, source: Source, chosen: dict[str, Variant]) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from racevisor.commands.output import console

    out = console()

    def heading(text: str) -> None:
        out.print()
        out.print(Text(text, style="bold"))

    out.print(Text(scenario.name, style="bold"), Text(f"  {scenario.patch}" if scenario.patch else "", style="dim"), sep="")
    out.print()
    for paragraph in story(scenario, source).split("\n\n"):
        table = any(line[:1] in " |*-" for line in paragraph.splitlines())  # is there a layout to keep?
        out.print(Text(paragraph if table else paragraph.replace("\n", " ")))
        out.print()
    out.print(Text("Set-ups", style="bold"))
    setups = _table("", "")
    for key, setup in scenario.setups.items():
        setups.add_row(Text(key), Text(setup.about + _those(setup, scenario)))
    out.print(Padding(setups, (0, 0, 0, 2)))
    heading("Variants")
    variants = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in ("variant", "what it is", "replaces"):
        variants.add_column(column)
    for key, variant in chosen.items():
        variants.add_row(Text(key), Text(variant.about), Text("\n".join(variant.replaces) or "nothing"))
    out.print(Padding(variants, (0, 0, 0, 2)))
    heading("Claims: how often the bad outcome is reached (set-ups not named: Never)")
    claims = _table("", "")
    for key in chosen:
        claims.add_row(Text(key), Text(claims_line(scenario, key)))
    out.print(Padding(claims, (0, 0, 0, 2)))
    exempt = [(key, check, why) for key, variant in chosen.items() for check, why in variant.exempt.items()]
    if exempt:
        heading("Checks that a variant does not promise")
        reasons = _table("", "", "")
        for key, check, why in exempt:
            reasons.add_row(Text(key), Text(check), Text(why))
        out.print(Padding(reasons, (0, 0, 0, 2)))
    first = next(iter(chosen))
    out.print()
    out.print(f"  search it:          racevisor explore {source.path} --variant {first}", soft_wrap=True)
    out.print(f"  what it replaces:   racevisor show {source.path} --variant {first} --source", soft_wrap=True)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for column in columns:
        table.add_column(column)
    return table


def claims_line(scenario: Scenario, variant: str) -> str:
    """`Sometimes: plain, irq (tso, pso)`; `Never` if that is all it claims."""
    found: dict[str, list[str]] = defaultdict(list)
    for setup in (setup for setup in scenario.setups if in_table(scenario, variant, setup)):
        memories: dict[str, list[str]] = defaultdict(list)
        for memory in MODELS:
            memories[claim(scenario, scenario.variants[variant], setup, memory)].append(memory)
        for word, models in memories.items():
            if word != Never:
                found[word].append(setup if len(models) == len(MODELS) else f"{setup} ({', '.join(models)})")
    return "; ".join(f"{word}: {', '.join(setups)}" for word, setups in found.items()) or Never


# ---- the source of what a variant replaces ----------------------------------------------------------------------------------


def _print_source(scenario: Scenario, source: Source, key: str, variant: Variant) -> None:
    from rich.text import Text

    from racevisor.commands.output import console

    out = console()
    out.print(Text(f"{scenario.name} {key}", style="bold"), Text(f"  {variant.about}"), sep="")
    own = {**KERNEL_FUNCTIONS, **scenario.functions}
    if not variant.replaces:
        out.print("  replaces nothing: it is the machine as it stands in actors/")
    for kernel, function in variant.replaces.items():
        out.print()
        whose = "the scenario's" if kernel in scenario.functions else "the machine's"
        left, right = f"{kernel}: {whose}", f"{kernel}: {key}"
        before, after = source_of(own[kernel], source), source_of(function, source)
        for line in _two_columns(out.width, left, before, right, after):
            out.print(Text(line, style="bold" if line.startswith(kernel) else ""), soft_wrap=True)


def _two_columns(width: int, left: str, before: list[str], right: str, after: list[str]) -> Iterator[str]:
    """Side by side if there is room, else one after the other."""
    if width < _SIDE_BY_SIDE:
        yield from (left, *(f"  {line}" for line in before), right, *(f"  {line}" for line in after))
        return
    room = (width - 3) // 2
    columns = [
        [title, *(part for line in lines for part in _broken(line, room))] for title, lines in ((left, before), (right, after))
    ]
    for i in range(max(map(len, columns))):
        cells = [column[i] if i < len(column) else "" for column in columns]
        yield f"{cells[0]:<{room}} | {cells[1]}".rstrip()


def _broken(line: str, room: int) -> list[str]:
    if len(line) <= room:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 8)
    return textwrap.wrap(line, room, subsequent_indent=indent, drop_whitespace=True, replace_whitespace=False)


def _those(setup: Setup, scenario: Scenario) -> str:
    """The variants that a set-up is there for, or those that it is not there for if they are fewer."""
    others = [name for name in scenario.variants if name not in setup.variants]
    if not setup.variants or not others:
        return ""
    return f"; not for {', '.join(others)}" if len(others) < len(setup.variants) else f"; for {', '.join(setup.variants)}"
