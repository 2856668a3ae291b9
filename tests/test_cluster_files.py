"""docs/kuberay.yaml and the commands of docs/clusters.md: what is wrong in them fails on somebody's cluster, not here.

The facts below are from KubeRay's custom resource definitions, ray.io/v1, as of 1.7: fields that we use or could misspell.
"""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from racevisor.cli import cli

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "docs" / "kuberay.yaml"
PAGE = ROOT / "docs" / "clusters.md"

# Per place: the fields that must be there, and the others that may be.
FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "RayCluster": (
        {"headGroupSpec"},
        {"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headServiceAnnotations",
         "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs"},
    ),
    "RayCluster.headGroupSpec": ({"template"}, {"headService", "labels", "rayStartParams", "resources", "serviceType"}),
    "RayCluster.workerGroupSpecs": (
        {"groupName", "maxReplicas", "minReplicas", "template"},
        {"idleTimeoutSeconds", "labels", "numOfHosts", "rayStartParams", "replicas", "resources", "suspend"},
    ),
    "RayCluster.authOptions": (set(), {"mode", "secretName", "enableK8sTokenAuth"}),
    "RayJob": (
        {"entrypoint"},
        {"activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypointNumCpus", "metadata",
         "preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode",
         "submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"},
    ),
    "template": ({"spec"}, {"metadata"}),
    "pod": ({"containers", "securityContext", "automountServiceAccountToken"}, {"restartPolicy"}),
    "container": ({"name", "image", "resources", "securityContext"}, {"ports"}),
}  # fmt: skip
QUANTITY = re.compile(r"^[0-9]+(m|Mi|Gi)?$")


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict[str, Any]]:
    documents = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
    assert [document["apiVersion"] for document in documents] == ["ray.io/v1"] * 2
    return {document["kind"]: document for document in documents}


def templates(manifest: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    cluster, job = manifest["RayCluster"]["spec"], manifest["RayJob"]["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [*(group["template"] for group in groups), job["submitterPodTemplate"]]


def wrong(place: str, given: dict[str, Any]) -> list[str]:
    required, others = FIELDS[place]
    return [f"{place} lacks {key}" for key in sorted(required - set(given))] + [
        f"{place} has no field {key}" for key in sorted(set(given) - required - others)
    ]


def test_the_manifest_has_the_fields_that_kuberay_knows(manifest: dict[str, dict[str, Any]]) -> None:
    """Kubernetes drops a misspelt field without a word, and the cluster is another one than was meant."""
    cluster, job = manifest["RayCluster"]["spec"], manifest["RayJob"]["spec"]
    found = wrong("RayCluster", cluster) + wrong("RayJob", job) + wrong("RayCluster.headGroupSpec", cluster["headGroupSpec"])
    found += wrong("RayCluster.authOptions", cluster["authOptions"])
    for group in cluster["workerGroupSpecs"]:
        found += wrong("RayCluster.workerGroupSpecs", group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay wants strings"
    for template in templates(manifest):
        found += wrong("template", template) + wrong("pod", template["spec"])
        for container in template["spec"]["containers"]:
            found += wrong("container", container)
    assert found == []
    assert wrong("RayJob", {"entryPoint": ""}) == ["RayJob lacks entrypoint", "RayJob has no field entryPoint"]


def test_the_job_finds_its_cluster_and_the_cluster_asks_for_a_secret(manifest: dict[str, dict[str, Any]]) -> None:
    """KubeRay refuses the token mode without rayVersion, and the job without a cluster."""
    cluster, job = manifest["RayCluster"], manifest["RayJob"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert cluster["spec"]["authOptions"] == {"mode": "token"}


def test_every_pod_runs_one_image_with_the_ray_that_is_pinned(manifest: dict[str, dict[str, Any]]) -> None:
    """Two versions of Ray in one cluster do not talk to each other, and two of racevisor would be a race of ours."""
    ray = version("ray")
    assert manifest["RayCluster"]["spec"]["rayVersion"] == ray
    (image,) = {container["image"] for template in templates(manifest) for container in template["spec"]["containers"]}
    assert re.fullmatch(rf"registry\.example\.com/racevisor:{re.escape(version('racevisor'))}-ray{re.escape(ray)}-py312", image)
    assert f"FROM rayproject/ray:{ray}-py312" in PAGE.read_text(encoding="utf-8")
    assert image in PAGE.read_text(encoding="utf-8")


def test_no_pod_may_more_than_it_needs(manifest: dict[str, dict[str, Any]]) -> None:
    """Actors run what a scenario file says: as nobody in particular, without the host's files, network or credentials."""
    for template in templates(manifest):
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            resources = container["resources"]
            assert set(resources) == {"requests", "limits"}
            assert all(QUANTITY.match(str(amount)) for kind in resources.values() for amount in kind.values())
    assert not {"hostPath", "hostNetwork", "hostPID", "hostIPC", "hostPort", "privileged"} & set(keys_of(list(manifest.values())))


def test_what_the_job_runs_is_a_command_of_ours(manifest: dict[str, dict[str, Any]]) -> None:
    """Found out in the log of a pod otherwise."""
    assert parses(manifest["RayJob"]["spec"]["entrypoint"])


def test_every_command_of_ours_on_the_page_of_clusters_parses() -> None:
    """A page of commands is as good as its worst line."""
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("   #")[0].strip() for block in blocks for line in block.splitlines()]
    ours = [
        line[line.index("racevisor ") :] for line in lines if re.search(r"(^|[ /])racevisor (run|replay|explore|list)\b", line)
    ]
    assert len(ours) >= 6
    assert [line for line in ours if not parses(line)] == []
    assert not parses("racevisor run init_sipi --adress auto")


def test_the_page_of_clusters_names_files_that_exist() -> None:
    """Links rot."""
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))
    assert links and [link for link in links if not (PAGE.parent / link).exists()] == []


def parses(line: str) -> bool:
    """Would the command line take it?  Nothing is run."""
    program, command, *arguments = shlex.split(line)
    if program != "racevisor" or command not in cli.commands:
        return False
    try:
        cli.commands[command].make_context(command, arguments)
    except Exception:
        return False
    return True


def keys_of(value: Any) -> Iterator[str]:
    """Every key of every mapping inside."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)
