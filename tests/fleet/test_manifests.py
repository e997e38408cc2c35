"""The manifests for Kubernetes: valid by its schemas, and what they promise."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gymwire.fleet import manifests as module
from gymwire.fleet.description import Fleet, load
from gymwire.fleet.manifests import manifests, manifests_text
from gymwire.fleet.yaml_text import yaml_text
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security import keys
from tests.cli.reading import Screen, call

TEXT = """
[fleet]
name = "lab"
broker = "tcp://broker.example.org:5555"
grace_s = 42.5
{fleet}
[agents]
cpus = 2
memory = "4GiB"
{agents}
[[offer]]
address = "lab/arm"
env = "arm:Arm"
env_kwargs = {{ scene = "yes: 'no'\\ntwo" }}
max_sessions = 8

[[offer]]
address = "lab/leg"
env = "arm:Leg"
max_sessions = 4

[kubernetes]
image = "registry.example.org/arm:1"
{kubernetes}
"""
KEYED = 'key = "agent.key"\nbroker_key = "broker.pub"'
RANGED = "min = 2\nmax = 20\nfree_slots = 3\nidle_s = 120"


def fleet_of(
    tmp_path: Path, *, fleet: str = "", agents: str = "count = 4", kubernetes: str = ""
) -> Fleet:
    if fleet == KEYED:
        for name in ("agent", "broker"):
            keys.generate(name, tmp_path)
    path = tmp_path / "fleet.toml"
    path.write_text(TEXT.format(fleet=fleet, agents=agents, kubernetes=kubernetes))
    return load(path)


def found(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [one] = [
        one for one in objects if one["kind"] == kind and one["metadata"]["name"] == f"lab-{name}"
    ]
    return one


def pod_of(objects: list[dict[str, Any]], role: str) -> dict[str, Any]:
    pod: dict[str, Any] = found(objects, "Deployment", role)["spec"]["template"]["spec"]
    return pod


CASES = {
    "plain": {},
    "keys, scaled": {"fleet": KEYED, "agents": RANGED, "kubernetes": 'namespace = "rl"'},
    "labels, GPUs": {"agents": 'count = 1\ngpus = 2\nplace = { zone = "a" }'},
    "packed, relayed": {
        "fleet": KEYED,
        "agents": 'count = 1\nplace = "packed"\ndirect = "never"',
        "kubernetes": 'secret = "mine"',
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_all_manifests_are_valid(tmp_path: Path, case: dict[str, str], version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the schemas")
    yaml = pytest.importorskip("yaml")
    fleet = fleet_of(tmp_path, **case)
    objects = [*yaml.safe_load_all(manifests_text(fleet))]
    assert objects == manifests(fleet)
    for one in objects:
        validate.validate(one, version, strict=True)


def test_the_schemas_notice_a_wrong_field(tmp_path: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="needs the schemas")
    wrong = found(manifests(fleet_of(tmp_path)), "Deployment", "agents")
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(wrong, "1.37", strict=True)


def test_labels_select_the_pods_of_each_role_only(tmp_path: Path) -> None:
    objects = manifests(fleet_of(tmp_path, fleet=KEYED, agents=RANGED))
    for kind in ("Deployment", "PodDisruptionBudget", "Service"):
        for one in (each for each in objects if each["kind"] == kind):
            selector = one["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            role = one["metadata"]["name"].removeprefix("lab-")
            template = found(objects, "Deployment", role)["spec"]["template"]
            assert template["metadata"]["labels"] == wanted
    roles = [one["metadata"]["name"] for one in objects if one["kind"] == "Deployment"]
    assert roles == ["lab-broker", "lab-agents", "lab-web"]


def test_agents_have_their_grace_period_and_drain_before_they_end(tmp_path: Path) -> None:
    pod = pod_of(manifests(fleet_of(tmp_path)), "agents")
    [agent] = pod["containers"]
    assert agent["command"][agent["command"].index("--grace") + 1] == "42.5"
    # 43 s, and what the agent takes to report what it has cut off
    assert pod["terminationGracePeriodSeconds"] == 48
    assert agent["lifecycle"]["preStop"]["exec"]["command"][-1] == "kill -USR1 1"
    assert agent["readinessProbe"]["tcpSocket"]["port"] == 7000
    assert agent["resources"] == {
        "requests": {"cpu": "2", "memory": str(4 * 2**30)},
        "limits": {"memory": str(4 * 2**30)},
    }


def test_a_secret_holds_the_keys_and_no_manifest_does(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, fleet=KEYED)
    text = manifests_text(fleet)
    assert keys.load(tmp_path / "agent.key").secret.decode() not in text
    first = "kubectl create secret generic lab-keys --from-file=agent.key --from-file=broker.key"
    assert first in text
    objects = manifests(fleet)
    for role, names in module.SECRET_FILES.items():
        [secret, *_] = [
            one["secret"] for one in pod_of(objects, role)["volumes"] if "secret" in one
        ]
        assert secret["secretName"] == "lab-keys"
        assert tuple(one["key"] for one in secret["items"]) == names


def test_the_copies_of_keys_are_readable_by_the_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kubelet gives them to a group: links to files with mode 0440."""
    for name in ("secret", "keys"):
        (tmp_path / name).mkdir()
    path, _ = keys.generate("agent", tmp_path)
    path.chmod(0o440)
    (tmp_path / "secret" / "agent.key").symlink_to(path)
    command = module.COPY_KEYS.replace(module.SECRET, str(tmp_path / "secret"))
    command = command.replace(module.KEYS, str(tmp_path / "keys"))
    subprocess.run(["sh", "-c", command], check=True)
    copied = tmp_path / "keys" / "agent.key"
    assert stat.S_IMODE(copied.stat().st_mode) == 0o400
    assert keys.load(copied).secret
    assert os.getuid() == copied.stat().st_uid


def test_the_autoscaler_wants_room_for_used_and_free_slots(tmp_path: Path) -> None:
    objects = manifests(fleet_of(tmp_path, agents=RANGED))
    assert "replicas" not in found(objects, "Deployment", "agents")["spec"]
    spec = found(objects, "HorizontalPodAutoscaler", "agents")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 20)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 120
    [metric] = spec["metrics"]
    rules = found(objects, "ConfigMap", "autoscaling")["data"]["prometheus-adapter.yaml"]
    assert metric["external"]["metric"]["name"] in rules
    for address, slots in (("lab/arm", 8), ("lab/leg", 4)):
        used = f'gymwire_slots_used{{address="{address}"}}'
        assert f"(sum by (address) ({used}) + 3) / {slots}" in json.loads(
            rules.rpartition("metricsQuery: ")[2]
        )


def test_a_fleet_of_a_fixed_size_has_no_autoscaler(tmp_path: Path) -> None:
    objects = manifests(fleet_of(tmp_path))
    assert found(objects, "Deployment", "agents")["spec"]["replicas"] == 4
    assert "HorizontalPodAutoscaler" not in [one["kind"] for one in objects]


@pytest.mark.parametrize(
    ("place", "affinity"), [("spread", "podAntiAffinity"), ("packed", "podAffinity")]
)
def test_agents_are_placed_as_the_file_says(tmp_path: Path, place: str, affinity: str) -> None:
    objects = manifests(fleet_of(tmp_path, agents=f'count = 1\nplace = "{place}"'))
    assert [*pod_of(objects, "agents")["affinity"]] == [affinity]


def test_labels_become_a_node_selector(tmp_path: Path) -> None:
    objects = manifests(fleet_of(tmp_path, agents='count = 1\nplace = { zone = "a" }'))
    assert pod_of(objects, "agents")["nodeSelector"] == {"zone": "a"}


def test_offers_reach_the_agents_as_they_are_in_the_file(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path)
    data = found(manifests(fleet), "ConfigMap", "offers")["data"]["offers.toml"]
    assert 'env = "arm:Leg"' in data
    [agent] = pod_of(manifests(fleet), "agents")["containers"]
    assert "/run/gymwire/offers/offers.toml" in agent["command"]
    assert agent["volumeMounts"][0]["mountPath"] == "/run/gymwire/offers"


@pytest.mark.parametrize("change", ['image = ""', "image = 3", "imagee = 'x'"])
def test_a_missing_image_and_wrong_keys_are_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "fleet.toml"
    text = TEXT.format(fleet="", agents="count = 1", kubernetes="")
    path.write_text(text.replace('image = "registry.example.org/arm:1"', change))
    with pytest.raises(ConfigurationError, match="image"):
        manifests(load(path))


def test_a_name_that_services_cannot_have_is_refused(tmp_path: Path) -> None:
    path = fleet_of(tmp_path).path
    path.write_text(path.read_text().replace('"lab"', '"4legs"'))
    with pytest.raises(ConfigurationError, match=r"line 3, name in .*begin with a letter"):
        manifests(load(path))


def test_a_part_of_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="whole GPUs only"):
        manifests(fleet_of(tmp_path, agents="count = 1\ngpus = 0.5"))


def test_the_command_prints_the_manifests(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path)
    screen = Screen()
    assert call(screen, "fleet", "manifests", str(fleet.path)) == 0
    assert screen.text == manifests_text(fleet)
    screen = Screen()
    assert call(screen, "fleet", "manifests", str(fleet.path), "--json") == 0
    assert screen.json["manifests"] == manifests(fleet)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": {}, "b": []},
        {"a": [[1, 2], [{"b": None}], []], "c": [{"d": {"e": [True]}, "f": "g"}]},
        {"text": "a: b", "yes": "yes", "no": "NO", "number": "1.5", "empty": "", "tilde": "~"},
        {"hash": "a #b", "comma": "a, b", "dash": "- a", "quote": '"', "bang": "!a", "star": "*"},
        {"lines": "one\ntwo\n", "more": "one\n\n two\n", "end": "one\ntwo", "first": "\none\n"},
        {
            "tab": "one\ttwo\nthree\n",
            "last": "one\n\n",
            "space": " one\ntwo\n",
            "bell": "a\x07\nb\n",
        },
        {"date": "2026-11-28", "path": "/a/b", "slash": "a/b", "dollar": "$(POD)", "colon": "a:"},
        {"on": "off", "Null": "null", "n": "y", "e": "1e3", "u": "ü", "trail": "a ", "0x": "0x1f"},
    ],
)
def test_yaml_reads_back_as_the_same_value(value: Any) -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(yaml_text([value])) == value
