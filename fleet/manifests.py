"""Kubernetes manifests of a fleet: agents, their broker, and the gateway."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gymwire.fleet.toml_text import line_of, tables_text
from gymwire.fleet.yaml_text import yaml_text
from gymwire.protocol.errors import ConfigurationError

if TYPE_CHECKING:
    from gymwire.fleet.description import Fleet

Object = dict[str, Any]

BROKER_PORT, DIRECT_PORT, WEB_PORT = 5555, 7000, 8080
LAST_S = 5  # after the grace period, for an agent to report what it cuts off
UID = 1000
KEYS, SECRET, OFFERS = "/run/gymwire/keys", "/run/gymwire/secret", "/run/gymwire/offers"
OFFERS_FILE = "offers.toml"
# Kubernetes gives the group access to a secret's files, and gymwire refuses keys that others can
# read. So the keys are copied into memory, for the user only.
COPY_KEYS = f"umask 077 && cp -L {SECRET}/* {KEYS}/"
SECRET_FILES = {
    "broker": ("broker.key",),
    "agents": ("agent.key", "broker.pub"),
    "web": ("web.key", "broker.pub", "tokens.toml"),
}
# Drains an agent even if its image has another STOPSIGNAL than SIGTERM, which follows at once.
DRAIN = {"exec": {"command": ["sh", "-c", "kill -USR1 1"]}}
# Wait until no proxy in the cluster sends it new connections.
LEAVE = {"exec": {"command": ["sleep", "5"]}}
ADAPTER_FILE = "prometheus-adapter.yaml"


def manifests(fleet: Fleet) -> list[Object]:
    """Return all objects. Raises ConfigurationError."""
    if not fleet.name[0].isalpha():
        raise ConfigurationError(
            f"{fleet.path}, line {line_of(fleet.text, 'fleet', 'name')}, name in [fleet]: names of "
            f"services in Kubernetes begin with a letter, unlike {fleet.name!r}."
        )
    image = fleet.kubernetes.get("image")
    if not image:
        raise ConfigurationError(
            f"{fleet.path}: `gymwire fleet manifests` needs an image with gymwire and the "
            f'environments. Add a table [kubernetes] with image = "…".'
        )
    return _Manifests(fleet, image).all()


def manifests_text(fleet: Fleet) -> str:
    """Return all objects as YAML, after a comment about the Secret. Raises ConfigurationError."""
    objects = manifests(fleet)
    secret = _secret_name(fleet)
    roles = SECRET_FILES if fleet.key else {"web": ("tokens.toml",)}
    files = sorted({name for names in roles.values() for name in names})
    options = " ".join(f"--from-file={name}" for name in files)
    namespace = fleet.kubernetes.get("namespace")
    where = f" --namespace {namespace}" if namespace else ""
    comment = (
        "# Before you apply this, create the Secret that it names, from files with these names:\n"
        f"#   kubectl create secret generic {secret}{where} {options}\n"
    )
    return comment + yaml_text(objects)


def _secret_name(fleet: Fleet) -> str:
    return str(fleet.kubernetes.get("secret", f"{fleet.name}-keys"))


class _Manifests:
    """The objects of one fleet."""

    def __init__(self, fleet: Fleet, image: str) -> None:
        self._fleet, self._image = fleet, image
        self._is_scaled = fleet.scale.least < fleet.scale.most
        self._is_direct = fleet.direct != "never"

    def all(self) -> list[Object]:
        made = [
            self._offers(),
            self._deployment("broker", self._broker(), strategy={"type": "Recreate"}),
            self._service("broker", BROKER_PORT),
            self._agents(),
            self._budget("agents", "10%"),
            self._budget("broker", 1),
            self._deployment("web", self._web()),
            self._service("web", WEB_PORT),
        ]
        if self._is_scaled:
            made += [self._adapter_rule(), self._autoscaler()]
        return made

    # --- the three programs -----------------------------------------------------------------------

    def _broker(self) -> Object:
        keys = ["--key", f"{KEYS}/broker.key"] if self._fleet.key else ["--insecure"]
        return {
            "name": "broker",
            "command": ["gymwire", "broker", "--bind", f"tcp://0.0.0.0:{BROKER_PORT}", *keys],
            "ports": [{"name": "broker", "containerPort": BROKER_PORT}],
            "readinessProbe": {"tcpSocket": {"port": BROKER_PORT}, "periodSeconds": 5},
        }

    def _web(self) -> Object:
        command = ["gymwire", "web", "--listen", f"0.0.0.0:{WEB_PORT}"]
        command += ["--token-file", f"{KEYS}/tokens.toml", "--broker", self._broker_url]
        return {
            "name": "web",
            "command": command + self._key_options("web.key"),
            "ports": [{"name": "web", "containerPort": WEB_PORT}],
            "readinessProbe": {
                "httpGet": {"path": "/healthz", "port": WEB_PORT},
                "periodSeconds": 5,
            },
            "lifecycle": {"preStop": LEAVE},
        }

    def _agents(self) -> Object:
        fleet = self._fleet
        command = ["gymwire", "serve", "--config", f"{OFFERS}/{OFFERS_FILE}"]
        command += ["--broker", self._broker_url, "--wait", "inf", "--grace", f"{fleet.grace_s:g}"]
        container: Object = {"name": "agent"}
        if self._is_direct:
            command += ["--direct", f"tcp://$(POD_IP):{DIRECT_PORT}"]
            command += [] if fleet.key else ["--insecure"]
            where = {"fieldRef": {"fieldPath": "status.podIP"}}
            container |= {
                "env": [{"name": "POD_IP", "valueFrom": where}],
                "ports": [{"name": "direct", "containerPort": DIRECT_PORT}],
                "readinessProbe": {"tcpSocket": {"port": DIRECT_PORT}, "periodSeconds": 5},
            }
        else:
            command += ["--direct", "never"]
            listed = ["gymwire", "ls", "--verbose", "--broker", self._broker_url]
            listed += self._key_options("agent.key")
            command_line = f'{shlex.join(listed)} | grep -q "$(hostname)"'
            container["readinessProbe"] = {
                "exec": {"command": ["sh", "-c", command_line]},
                "periodSeconds": 30,
                "timeoutSeconds": 10,
            }
        container |= {
            "command": command + self._key_options("agent.key"),
            "lifecycle": {"preStop": DRAIN},
            "resources": self._resources(),
            "volumeMounts": [{"name": "offers", "mountPath": OFFERS, "readOnly": True}],
        }
        pod: Object = {"terminationGracePeriodSeconds": math.ceil(fleet.grace_s) + LAST_S}
        pod |= self._place()
        offers = {"name": "offers", "configMap": {"name": f"{fleet.name}-offers"}}
        # With a number here, each `kubectl apply` would overrule the autoscaler.
        count = {} if self._is_scaled else {"replicas": fleet.scale.least}
        return self._deployment("agents", container, pod=pod, volumes=[offers], **count)

    @property
    def _broker_url(self) -> str:
        return f"tcp://{self._fleet.name}-broker:{BROKER_PORT}"

    def _key_options(self, key: str) -> list[str]:
        if not self._fleet.key:
            return []
        return ["--key", f"{KEYS}/{key}", "--broker-key", f"{KEYS}/broker.pub"]

    def _resources(self) -> Object:
        wanted = self._fleet.resources
        requests: Object = {"cpu": f"{wanted.cpus:g}"}
        limits: Object = {}
        if wanted.memory is not None:
            requests["memory"] = limits["memory"] = str(wanted.memory)
        if wanted.gpus:
            if wanted.gpus != int(wanted.gpus):
                raise ConfigurationError(
                    f"Kubernetes gives an agent whole GPUs only, not {wanted.gpus:g} of one. Set "
                    f"gpus in {self._fleet.path} to a whole number."
                )
            limits["nvidia.com/gpu"] = int(wanted.gpus)
        return {"requests": requests, **({"limits": limits} if limits else {})}

    def _place(self) -> Object:
        """Return which nodes take the agents."""
        place = self._fleet.place
        if isinstance(place, Mapping):
            return {"nodeSelector": dict(place)}
        term = {
            "labelSelector": {"matchLabels": self._labels("agents")},
            "topologyKey": "kubernetes.io/hostname",
        }
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        kind = "podAntiAffinity" if place == "spread" else "podAffinity"
        return {"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}}

    # --- the objects ------------------------------------------------------------------------------

    def _object(self, version: str, kind: str, name: str, role: str) -> Object:
        metadata: Object = {"name": f"{self._fleet.name}-{name}", "labels": self._labels(role)}
        if "namespace" in self._fleet.kubernetes:
            metadata["namespace"] = self._fleet.kubernetes["namespace"]
        return {"apiVersion": version, "kind": kind, "metadata": metadata}

    def _labels(self, role: str) -> Object:
        return {
            "app.kubernetes.io/name": "gymwire",
            "app.kubernetes.io/instance": self._fleet.name,
            "app.kubernetes.io/component": role,
        }

    def _offers(self) -> Object:
        made = self._object("v1", "ConfigMap", "offers", "agents")
        return {**made, "data": {OFFERS_FILE: tables_text("offer", self._fleet.offers)}}

    def _deployment(
        self,
        role: str,
        container: Object,
        *,
        pod: Mapping[str, Any] | None = None,
        volumes: Sequence[Object] = (),
        **more: Any,
    ) -> Object:
        files = SECRET_FILES[role] if self._fleet.key else ()
        if role == "web" and not files:
            files = ("tokens.toml",)
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        container = {**container, "image": self._image, "securityContext": security}
        spec: Object = {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": UID,
                "fsGroup": UID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **(pod or {}),
        }
        mounts = list(container.pop("volumeMounts", ()))
        volumes = list(volumes)
        if files:
            volumes += self._key_volumes(files)
            keys = {"name": "keys", "mountPath": KEYS}
            secret = {"name": "secret", "mountPath": SECRET, "readOnly": True}
            mounts.append({**keys, "readOnly": True})
            spec["initContainers"] = [
                {
                    "name": "keys",
                    "image": self._image,
                    "command": ["sh", "-c", COPY_KEYS],
                    "securityContext": security,
                    "volumeMounts": [keys, secret],
                }
            ]
        container |= {"volumeMounts": mounts} if mounts else {}
        spec["containers"] = [container]
        spec |= {"volumes": volumes} if volumes else {}
        made = self._object("apps/v1", "Deployment", role, role)
        made["spec"] = {
            **({"replicas": 1} if role != "agents" else {}),
            **more,
            "selector": {"matchLabels": self._labels(role)},
            "template": {"metadata": {"labels": self._labels(role)}, "spec": spec},
        }
        return made

    def _key_volumes(self, files: Sequence[str]) -> Iterator[Object]:
        items = [{"key": name, "path": name} for name in files]
        yield {
            "name": "secret",
            "secret": {"secretName": _secret_name(self._fleet), "items": items},
        }
        yield {"name": "keys", "emptyDir": {"medium": "Memory"}}

    def _service(self, role: str, port: int) -> Object:
        made = self._object("v1", "Service", role, role)
        made["spec"] = {
            "selector": self._labels(role),
            "ports": [{"name": role, "port": port, "targetPort": port}],
        }
        return made

    def _budget(self, role: str, at_once: int | str) -> Object:
        """Bound how many pods a drain of nodes may end at once."""
        made = self._object("policy/v1", "PodDisruptionBudget", role, role)
        made["spec"] = {
            "maxUnavailable": at_once,
            "selector": {"matchLabels": self._labels(role)},
        }
        return made

    # --- autoscaling ------------------------------------------------------------------------------

    @property
    def _metric(self) -> str:
        return f"gymwire_{self._fleet.name.replace('-', '_')}_agents_wanted"

    def _adapter_rule(self) -> Object:
        """Return the rule by which prometheus-adapter offers the number of agents as a metric.

        An HPA adds pods when its metric rises, but agents are needed when free slots become few.
        The metric is therefore how many agents the used slots and those that must be free need.
        """
        scale = self._fleet.scale
        wanted = " or ".join(
            f'(sum by (address) (gymwire_slots_used{{address="{address}"}}) + {scale.free_slots}) '
            f"/ {slots}"
            for address, slots in scale.slots.items()
        )
        rule = {
            "seriesQuery": "gymwire_slots_used",
            "resources": {"namespaced": False},
            "name": {"matches": ".*", "as": self._metric},
            "metricsQuery": f"max({wanted})",
        }
        made = self._object("v1", "ConfigMap", "autoscaling", "agents")
        return {**made, "data": {ADAPTER_FILE: yaml_text([{"externalRules": [rule]}])}}

    def _autoscaler(self) -> Object:
        scale = self._fleet.scale
        made = self._object("autoscaling/v2", "HorizontalPodAutoscaler", "agents", "agents")
        made["spec"] = {
            "scaleTargetRef": {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": f"{self._fleet.name}-agents",
            },
            "minReplicas": max(1, scale.least),  # without agents there is no metric
            "maxReplicas": scale.most,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": self._metric},
                        "target": {"type": "AverageValue", "averageValue": "1"},
                    },
                }
            ],
            "behavior": {
                "scaleDown": {"stabilizationWindowSeconds": min(3600, math.ceil(scale.idle_s))}
            },
        }
        return made
