"""`ray up ray_config.yaml` fails on the user's machines, minutes later and far away; what can be known here is checked here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "ray_config.yaml"


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def test_ray_itself_accepts_the_cluster_file(config: dict[str, Any]) -> None:
    """The same two calls that `ray up` makes first: fill in what the provider defaults, then Ray's own JSON schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"])


def test_ray_refuses_a_misspelt_key_of_the_cluster_file(config: dict[str, Any]) -> None:
    """Otherwise the test above proves nothing: a schema that lets anything through would pass it too."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        validate_config(prepare_config({**config, "setup_comands": []}))


def test_every_key_of_the_cluster_file_has_its_explanation_right_above() -> None:
    """A user edits this file without Ray's manual at hand."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    bare = [key for key, line in keys_of(yaml.compose("\n".join(lines))) if not lines[line - 1].lstrip().startswith("#")]
    assert bare == []


def test_the_cluster_file_installs_from_the_lock_with_hashes(config: dict[str, Any]) -> None:
    """Two machines with two versions of msgpack or Ray are a failure that looks like a race."""
    mounts = {there: here for there, here in config["file_mounts"].items() if not here.startswith("~")}
    assert all((ROOT / here).exists() for here in mounts.values() if here != "dist"), "dist is what `make wheel` makes"
    commands = "\n".join(config["setup_commands"])
    assert all(there in commands for there in mounts), "what is copied is what is installed"
    assert "--require-hashes" in commands


def test_every_ray_command_of_the_cluster_file_names_one_authentication_mode(config: dict[str, Any]) -> None:
    """Left to its default, Ray asks for a token where it finds one, and a worker that has none waits in vain for the head."""
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert [command for command in commands if "RAY_AUTH_MODE=token ~/racevisor-venv/bin/ray " not in command] == []
    assert "~/.ray/auth_token" in config["file_mounts"]


def keys_of(node: yaml.Node | None) -> Iterator[tuple[str, int]]:
    """Every key of every mapping below `node`, with the index of its line."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key.value, key.start_mark.line
            yield from keys_of(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from keys_of(item)
