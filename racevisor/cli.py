"""The command line.  Options are declared here; what a command does is in `racevisor.commands`, imported when it is called.

Standard output is what was asked for; messages and progress go to standard error.  With --json, standard output holds one
object and nothing else, also when something fails.
"""

from __future__ import annotations

from racevisor import start

start.guard()  # before anything that takes time

# ruff: noqa: E402
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from racevisor import __version__
from racevisor.choose import help_text
from racevisor.cli_analyze import analyze
from racevisor.cli_conform import conform
from racevisor.cli_options import as_json, in_full, into_trace_dir, not_shrunk, of_vcpus, shrink_budget, widely
from racevisor.cli_why import compare, explain, report, step
from racevisor.collector import collect_rarely
from racevisor.errors import RacevisorError, Unfinished, UsageError
from racevisor.start import INTERRUPTED


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="racevisor")
def cli() -> None:
    """Find cross-CPU races in a hypervisor on purpose, replay them, prove them gone, run them live on Ray.

    NAME is a built-in scenario (see: racevisor list) or the path of your own .py file.

    Exit status: 0 outcomes as claimed, 1 not as claimed, 2 usage, 3 the run was not deterministic, 4 the cluster failed.
    """


@cli.command("list")
@as_json
def list_(as_json: bool) -> None:
    """The built-in scenarios, one line each."""
    from racevisor.commands.catalogue import list_scenarios

    list_scenarios(as_json)


@cli.command()
@click.argument("name")
@click.option("--variant", "variants", multiple=True, metavar="V", help="Only this variant; may be repeated.")
@click.option("--source", is_flag=True, help="Print the functions that the variants replace next to the machine's own.")
@as_json
def show(name: str, variants: tuple[str, ...], source: bool, as_json: bool) -> None:
    """What a scenario is about: story, patch, variants, set-ups, claims."""
    from racevisor.commands.catalogue import show_scenario

    show_scenario(name, variants, source, as_json)


def _leave_to(directory: Path | None, names: str) -> None:
    """What is resumed from a directory knows these options: UsageError if one was given, for it would have no effect."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if directory is not None and given and parameter.name in names.split():
            raise UsageError(f"{directory} goes on as it was begun\n  leave out {parameter.opts[0]}, or begin a new one")


@cli.command()
@click.argument("name", required=False)
@click.option("--variant", "variants", multiple=True, metavar="V", help="Only this variant; may be repeated.")
@click.option("--setup", "setups", multiple=True, metavar="S", help="Only this set-up; may be repeated.")
@click.option("--memory", "memories", multiple=True, metavar="M", help="Only this memory model (sc, tso, pso); may be repeated.")
@click.option(
    "--strategy",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How to search, see above.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="At most this long a cell: 60s, 2m, 1.5h.  [default: auto without --runs: 5m; others: no bound]",
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    help="At most this many executions a cell.  [default: no bound; pct, random without --budget: 1000; audit: 100]",
)
@click.option("--depth", type=click.IntRange(1), help="Depth of the bugs that pct aims at, also within auto.  [default: 2]")
@click.option("--bound", type=click.IntRange(0), help="How many delays or preemptions an execution may have.  [default: 2]")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of pct (also within auto), random and audit.")
@click.option("--symmetry", is_flag=True, help="states, auto: treat interchangeable vCPUs as one another.")
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one per CPU]")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Share the search out among N workers on Ray.")
@click.option("--address", metavar="ADDR", help="With workers on this Ray cluster, as for racevisor run.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="With workers: where checkpoints go.  [default: a new directory below runs/NAME]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Go on with the search in that directory, with any number of workers; without NAME.",
)
@click.option("--max-steps", type=click.IntRange(1), help="Step bound of one execution.  [default: the scenario's]")
@of_vcpus
@into_trace_dir
@click.option("--to-the-end", is_flag=True, help="Go on after a bad and a good execution have settled on Sometimes.")
@click.option(
    "--decompose/--no-decompose",
    default=None,
    help="Search part by part what talks through a hub only.  [default: with more than 2 vCPUs]",
)
@click.option("--picture", is_flag=True, help="Draw an interleaving even if several cells are explored.")
@not_shrunk
@shrink_budget
@in_full
@widely
@as_json
def explore(**options: Any) -> int:
    from racevisor.commands.explore import explore_scenario

    whole = (
        "variants setups memories strategy budget runs depth bound seed symmetry max_steps vcpus to_the_end decompose directory"
    )
    _leave_to(options["resume"], whole)
    if any(options[name] is not None for name in ("workers", "address", "directory", "resume")):
        from cluster.search import Crew

        options["make_crew"] = Crew
    return explore_scenario(**options)


explore.help = f"""Search the interleavings, and hold what is found against what the scenario claims.

Without --variant, --setup or --memory, all of them are explored: a table of verdicts.  Every bad outcome found is saved as
a trace.  Only the verdict "exhausted" is a proof; what else was bounded, and what is left, is said below the table.

With --workers the search is shared out on Ray, and kept on the disk: after anything, --resume goes on with it.  What was met is
certified by a number that is the same for any number of workers.  A search that settles on Sometimes stops early, with no
certificate, unless it goes --to-the-end.

Strategies:

\b
{help_text()}
"""


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--variant", "variants", multiple=True, metavar="V", help="Only this variant; may be repeated.")
@click.option("--setup", "setups", multiple=True, metavar="S", help="Only this set-up; may be repeated.")
@click.option("--memory", "memories", multiple=True, metavar="M", help="Only this memory model (sc, tso, pso); may be repeated.")
@click.option("--budget", metavar="TIME", help="At most this long a cell: 60s, 2m, 1.5h.  [default: 5m]")
@click.option("--workers", type=click.IntRange(1), help="Processes.  [default: one per CPU]")
@click.option("--jobs", type=click.IntRange(1), hidden=True)  # what --workers was called
@click.option("--full", is_flag=True, help="A row for every cell; fold nothing.")
@click.option("--markdown", is_flag=True, help="Print the claims as a page, docs/verdicts.md, and search nothing.")
@as_json
def verify(names: tuple[str, ...], markdown: bool, workers: int | None, jobs: int | None, **options: Any) -> int:
    """Hold every claim of the scenarios named, or of all that are built in, against a search.  Minutes.

    A row for each set-up, the memory models side by side; set-ups where all is Never, as claimed, share a row.  Exit status 1 if
    a claim is not confirmed.
    """
    from racevisor.commands.verify import print_page
    from racevisor.commands.verify import verify as verify_claims

    return print_page(names) if markdown else verify_claims(names, jobs=workers or jobs, **options)


@cli.command()
@click.option("--jobs", type=click.IntRange(1), help="Processes.  [default: one per CPU]")
@as_json
def selfcheck(jobs: int | None, as_json: bool) -> int:
    """Check the searches of this installation against known numbers: classes, outcomes, rates.  Under a minute.

    Exit status 1 if any number differs.
    """
    from racevisor.commands.selfcheck import check

    return check(jobs, as_json)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--scenario", metavar="NAME", help="The scenario, if it is no longer where it was recorded.")
@click.option(
    "--on",
    type=click.Choice(["world", "ray"]),
    default="world",
    show_default=True,
    help="Where: in this process, or on real Ray actors as well, each step granted in exactly the trace's order.",
)
@click.option("--address", metavar="ADDR", help="With --on ray: the cluster, as for racevisor run.")
@click.option("--placement", default="auto", show_default=True, metavar="P", help="With --on ray: as for racevisor run.")
@not_shrunk
@shrink_budget
@in_full
@widely
@as_json
def replay(
    file: Path,
    scenario: str | None,
    on: str,
    address: str | None,
    placement: str,
    no_shrink: bool,
    shrink_budget: float,
    full: bool,
    as_json: bool,
) -> int:
    """Run a trace again, step by step, and draw it, shrunk.  Exit status 3 if any step differs."""
    from racevisor.commands.replay import replay_trace
    from racevisor.reason import Wish

    gated = None
    if on == "ray":
        from cluster.gated import play
        from cluster.live import LiveOptions, LiveRun

        def gated(case: Any, picks: Any) -> Any:
            options = LiveOptions(noise=None, address=address, placement=placement, gated=True)
            with LiveRun(case, options) as run:
                return play(run, picks), str(run.plan)

    return replay_trace(file, scenario, full, as_json, gated, Wish(not no_shrink, shrink_budget))


def _live(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of all commands that play on Ray."""
    options = [
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the noise."),
        click.option(
            "--noise",
            type=click.FloatRange(0, 1),
            default=0.1,
            show_default=True,
            help="How often a thread lets others go first before it takes a step.",
        ),
        click.option(
            "--address",
            metavar="ADDR",
            help="Join this Ray cluster: HOST:PORT, auto, ray://HOST:PORT.  [default: $RAY_ADDRESS, else a local Ray of our own]",
        ),
        click.option(
            "--placement",
            default="auto",
            show_default=True,
            metavar="P",
            help="dedicated (each actor a Ray actor), packed (many to one), auto (what the cluster carries), or a JSON file "
            'with the host of each actor by name pattern: {"vcpu0": 0, "*": 1}.',
        ),
        click.option("--hosts", type=click.IntRange(1), metavar="N", help="Pack into N Ray actors.  [default: one for each CPU]"),
        click.option(
            "--vms",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            metavar="M",
            help="Independent VMs that play at a time.",
        ),
        click.option(
            "--transport",
            type=click.Choice(["sockets", "ray"]),
            default="sockets",
            show_default=True,
            help="What carries the messages: sockets between the processes, or Ray calls.  Always ray at ray://HOST:PORT.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@cli.command()
@click.argument("name")
@click.option("--variant", metavar="V", help="The version of the code to run.  [default: the scenario's first variant]")
@click.option("--setup", metavar="S", help="Who runs.  [default: the first set-up in which it is claimed to go wrong]")
@click.option("--memory", default="tso", show_default=True, metavar="M", help="Memory model: sc, tso (x86) or pso.")
@of_vcpus
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True, help="How often to play it.")
@_live
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where structured logs (JSON lines) go.  [default: logs beside the traces]",
)
@click.option("--log-steps", is_flag=True, help="Log every step as well, one file per host.")
@into_trace_dir
@not_shrunk
@shrink_budget
@in_full
@widely
@as_json
def run(**options: Any) -> int:
    """Play rounds live on Ray, on real parallel hardware: each actor a Ray actor, or many actors to each."""
    from cluster.live import LiveOptions, LiveRun
    from racevisor.commands.run import run_live

    return run_live(LiveOptions, LiveRun, **options)


@cli.command()
@click.argument("name", required=False)
@click.option("--variant", metavar="V", help="The version of the code to run.  [default: the scenario's first variant]")
@click.option("--setup", metavar="S", help="Who runs.  [default: the first set-up in which it is claimed to go wrong]")
@click.option("--memory", default="tso", show_default=True, metavar="M", help="Memory model: sc, tso (x86) or pso.")
@click.option(
    "--vcpus", type=click.IntRange(1), metavar="N", help="How many vCPUs.  [default: 64, or what the scenario can have]"
)
@click.option("--duration", metavar="T", help="For how long rounds begin: 90s, 10m, 1.5h.  [default: 60s, unless --rounds]")
@click.option("--rounds", type=click.IntRange(1), help="Or until so many are played.")
@_live
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where counts, log and traces go.  [default: a new directory below runs/NAME]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Go on with what was interrupted there, on another cluster with --address; --duration and --rounds count from its very "
    "beginning.",
)
@in_full
@widely
@click.option("--json", "json_", is_flag=True, help="One JSON object on standard output, and nothing else there.")
def stress(**options: Any) -> int:
    """Play rounds live on Ray until the time is up: many vCPUs, many machines at a time, through faults.

    The directory holds the counts, a log of all rounds, bounded in size, and the traces of the first bad rounds.
    """
    _leave_to(options["resume"], "variant setup memory vcpus seed noise placement hosts vms transport directory")
    from cluster.live import LiveOptions, LiveRun
    from racevisor.commands.stress import stress as run_stress

    return run_stress(LiveOptions, LiveRun, **options)


for _command in (analyze, compare, conform, explain, report, step):
    cli.add_command(_command)


# ---- how it ends ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """The console script: every failure is one message and an exit status, never a traceback for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    collect_rarely()
    try:
        status = cli.main(arguments, prog_name="racevisor", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _fail(arguments, _usage(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):  # click's word for Ctrl-C; a command that had results has printed them itself
        _fail(arguments, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has left (`racevisor list | head -1`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Unfinished as unfinished:
        cause = unfinished.__cause__
        assert isinstance(cause, Exception)
        told = _told(cause, arguments)
        if told is None:
            if "--json" in arguments:
                click.echo(json.dumps({**unfinished.results, "error": repr(cause), "exit_status": 1}))
            raise cause from cause.__cause__
        _fail(arguments, f"{told[0]}\n{unfinished}", told[1], unfinished.results)
    except Exception as error:
        told = _told(error, arguments)
        if told is None:
            raise  # a bug of ours: its traceback is what we need to see
        _fail(arguments, *told)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _told(error: Exception, arguments: list[str]) -> tuple[str, int] | None:
    """(message, exit status) for what the user can do something about: what, where, what next."""
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, RacevisorError):
        return f"{error}{notes}", error.exit_status
    where = _in_scenario(error, arguments)
    return (f"{where}: {type(error).__name__}: {error}{notes}", RacevisorError.exit_status) if where else None


def _in_scenario(error: Exception, arguments: list[str]) -> str:
    """The innermost line of a scenario file that an exception went through, here or in a worker process; "" if none."""
    place = ""
    for file, line, function in re.findall(r'File "([^"]+)", line (\d+), in (\S+)', "".join(traceback.format_exception(error))):
        if file in arguments:
            place = f"scenario file {file}, line {line}, in {function}"
    here = error.__traceback__
    while here is not None:
        if str(here.tb_frame.f_globals.get("__name__", "")).startswith("scenario_"):
            code = here.tb_frame.f_code
            place = f"scenario file {code.co_filename}, line {here.tb_lineno}, in {code.co_name}"
        here = here.tb_next
    return place


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    help_line = f"\n  see: {context.command_path} --help" if context is not None else ""
    return f"{error.format_message()}{help_line}"


def _fail(arguments: list[str], message: str, status: int, results: Mapping[str, Any] | None = None) -> None:
    if "--json" in arguments:
        click.echo(json.dumps({**(results or {}), "error": message, "exit_status": status}))
    click.echo(f"racevisor: {message}", err=True)
    sys.exit(status)


start.release()  # click, and the commands, know what to do

if __name__ == "__main__":
    main()
