"""A trace that a search has found, played on real Ray actors in exactly its order."""

from random import Random

import pytest

from cluster.gated import play
from cluster.live import LiveOptions, LiveRun
from cluster.parity import schedule_of
from racevisor.errors import NotDeterministic
from racevisor.scenario import Case, load

pytestmark = pytest.mark.usefixtures("embedded_ray")


def case_of(name: str, variant: str, setup: str, memory: str) -> Case:
    scenario, source = load(name)
    return Case(scenario, source, variant, setup, memory)


def found(case: Case, seed: int) -> list[tuple[str, str]]:
    """A schedule of the World that no hardware would come upon."""
    world = case.world()
    random = Random(seed)
    world.reset()
    while world.movable:  # past a broken check, to the end
        world.step(random.choice(world.movable))
    return [(step.channel, step.label) for step in world.steps]


@pytest.mark.parametrize(
    ("name", "setup", "memory", "placement"),
    [
        ("init_sipi", "plain", "pso", "dedicated"),
        ("init_sipi", "plain", "tso", "packed"),
        ("hypercall_patching", "smp", "tso", "packed"),
        ("vcpu_requests", "posted", "tso", "packed"),
    ],
)
def test_real_actors_take_any_schedule_of_the_world_step_by_step(name: str, setup: str, memory: str, placement: str) -> None:
    """Posted stores, IPIs in flight, blocking ops and choices among them; the hosts end in the World's state."""
    case = case_of(name, "before", setup, memory)
    with LiveRun(case, LiveOptions(noise=None, placement=placement, gated=True)) as run:
        picks = found(case, 1)
        execution = play(run, picks)
    assert schedule_of(execution) == picks
    assert execution.outcome is not None


def test_a_step_that_cannot_be_taken_is_told_with_what_was_wanted() -> None:
    """Another order, another label: the trace is of another machine, and a run that goes on would show nothing."""
    case = case_of("init_sipi", "before", "plain", "tso")
    picks = found(case, 1)
    at = next(i for i, (name, _) in enumerate(picks) if name != picks[0][0])
    for wrong, why in (
        ([*picks[:at], ("vcpu1~stores", "x"), *picks[at:]], rf"step {at} wants vcpu1~stores:  x\n  but in the World only"),
        ([*picks[:at], (picks[at][0], "READ_ONCE(x) = 1")], rf"step {at} wants .*:  READ_ONCE\(x\) = 1\n  but what happens is"),
    ):
        with (
            LiveRun(case, LiveOptions(noise=None, placement="packed", gated=True)) as run,
            pytest.raises(NotDeterministic, match=why),
        ):
            play(run, wrong)


def test_hosts_that_play_another_machine_are_found_out() -> None:
    """The World of the driver says one thing and the actors another: that is what the comparison of each step is for."""
    case = case_of("init_sipi", "before", "plain", "tso")
    picks = found(case, 1)
    with LiveRun(case, LiveOptions(noise=None, placement="packed", gated=True)) as run:
        assert run.world is not None
        cell = next(cell for cell in run.world.vm.cells if cell.label == "vcpu1.mp_state")
        cell.init = 7
        n = next(i for i, (_, label) in enumerate(picks) if "READ_ONCE(vcpu1.mp_state)" in label)
        changed = [(name, "READ_ONCE(vcpu1.mp_state) = 7" if i == n else label) for i, (name, label) in enumerate(picks[: n + 1])]
        with pytest.raises(
            NotDeterministic, match=rf"step {n} wants .*\n  but on Ray it was vcpu1: READ_ONCE\(vcpu1.mp_state\) ="
        ):
            play(run, changed)
