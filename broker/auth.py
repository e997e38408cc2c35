"""The policy: which key may do what at a broker, read from TOML.

[peer.lab]                          # a name, for logs and messages
key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"   # or: keys = ["...", "..."]
offer = ["lab/*"]                   # patterns of addresses; * matches anything
[peer.alice]
key = "…"
use = ["lab/*", "cartpole"]
sessions = 4                        # at the same time
requests_in_flight = 8              # over all sessions
message_bytes = 1_000_000
steps_per_s = 500
[peer.operator]
key = "…"
observe = ["*"]                     # see sessions and offers with `gymwire top`
stop = ["lab/*"]                    # end sessions and env agents with `gymwire stop`
watch = ["lab/*"]                   # see the frames of sessions with `gymwire web`
[anyone]                            # all other keys; without this table they are refused
use = ["demo/*"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from gymwire.protocol.codec import MAX_INT
from gymwire.protocol.errors import ConfigurationError
from gymwire.protocol.security.keys import is_public_key

_RIGHTS = ("offer", "use", "observe", "stop", "watch")
_LIMITS = ("sessions", "requests_in_flight", "message_bytes", "steps_per_s")


@dataclass(frozen=True, slots=True)
class Rights:
    """What the owner of a key may do. A limit of None means unlimited.

    `name`: the policy's name for the key. `offer`, `use`, `observe`, `stop`, `watch`: patterns of
    addresses. `vouched`: the policy lists this key, so it may offer an address together with other
    listed keys. An unlisted key never shares an address: the first key to offer it owns it.
    """

    name: str
    offer: tuple[str, ...] = ()
    use: tuple[str, ...] = ()
    sessions: int | None = None
    requests_in_flight: int | None = None
    message_bytes: int | None = None
    steps_per_s: float | None = None
    vouched: bool = False
    observe: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()

    def may_offer(self, address: str) -> bool:
        """Return whether the key may offer environments under this address."""
        return any(fnmatchcase(address, pattern) for pattern in self.offer)

    def may_use(self, address: str) -> bool:
        """Return whether the key may open sessions at this address and see it listed."""
        return any(fnmatchcase(address, pattern) for pattern in self.use)

    def may_observe(self, address: str) -> bool:
        """Return whether the key may see the offers and sessions at this address."""
        return any(fnmatchcase(address, pattern) for pattern in self.observe)

    def may_stop(self, address: str) -> bool:
        """Return whether the key may end the sessions and env agents of others at this address."""
        return any(fnmatchcase(address, pattern) for pattern in self.stop)

    def may_watch(self, address: str) -> bool:
        """Return whether the key may see the frames of the sessions of others at this address."""
        return any(fnmatchcase(address, pattern) for pattern in self.watch)

    @property
    def metered(self) -> bool:
        """Whether the broker must check each request of the key against limits."""
        limits = (self.requests_in_flight, self.message_bytes, self.steps_per_s)
        return any(limit is not None for limit in limits)


EVERYTHING = Rights("anyone", offer=("*",), use=("*",), observe=("*",), stop=("*",), watch=("*",))
"""The rights of each peer without a policy. It is an operator only on the broker's host."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Rights by public key (z85).

    `anyone`: the rights of keys that are not listed; None: they may not connect.
    """

    peers: Mapping[bytes, Rights] = field(default_factory=dict)
    anyone: Rights | None = EVERYTHING

    def rights(self, key: bytes | None) -> Rights | None:
        """Return what this key may do, or None if it may not connect.

        A peer without a key has the rights of an unlisted key.
        """
        return self.anyone if key is None else self.peers.get(key, self.anyone)

    def admits(self, key: bytes) -> bool:
        """Return whether the owner of this key may connect."""
        return self.rights(key) is not None


NO_POLICY = Policy()
"""Every peer may do everything; an address belongs to the first key that offers it."""


def parse(text: str) -> Policy:
    """Parse a policy. Raises ConfigurationError naming the wrong place."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"The policy is not valid TOML: {error}.") from None
    for word in document:
        if word not in ("peer", "anyone"):
            raise ConfigurationError(
                f"The policy has an unknown table [{word}]. Use [peer.NAME] and [anyone]."
            )
    tables = _table(document.get("peer", {}), "peer")
    peers: dict[bytes, Rights] = {}
    for name, entry in tables.items():
        where = f"[peer.{name}]"
        table = dict(_table(entry, f"peer.{name}"))
        for key in _keys(table, where):
            if key in peers:
                raise ConfigurationError(
                    f"{where}: [peer.{peers[key].name}] already has the key {key.decode('ascii')}. "
                    f"List each key once."
                )
            peers[key] = _rights(name, table, where, vouched=True)
    anyone = None
    if "anyone" in document:
        anyone = _rights("anyone", _table(document["anyone"], "anyone"), "[anyone]", vouched=False)
    if not peers and anyone is None:
        raise ConfigurationError(
            "The policy is empty: it lists no key, so nobody could connect. Add [peer.NAME] with a "
            "key, or [anyone]."
        )
    return Policy(peers, anyone)


def revoked(old: Policy, new: Policy) -> list[str]:
    """Return what the old policy allows and the new one does not, in words for the log."""
    found: dict[str, None] = {}  # each once: a peer may have several keys
    for key, before in old.peers.items():
        for text in _revoked(before, new.rights(key)):
            found[f"{before.name}: {text}"] = None
    if old.anyone is not None:
        for text in _revoked(old.anyone, new.anyone):
            found[f"unlisted keys: {text}"] = None
    return list(found)


def _revoked(old: Rights, new: Rights | None) -> list[str]:
    if new is None:
        return ["connect"]
    found = []
    for verb in _RIGHTS:
        left = getattr(new, verb)
        found += [
            f"{verb} {pattern}"
            for pattern in getattr(old, verb)
            if not any(fnmatchcase(pattern, other) for other in left)
        ]
    for limit in _LIMITS:
        before, after = getattr(old, limit), getattr(new, limit)
        if after is not None and (before is None or after < before):
            found.append(f"{limit} above {after}")
    if old.vouched and not new.vouched:
        found.append("share addresses")
    return found


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError(f"[{where}] must be a table in the policy.")
    return value


def _keys(table: dict[str, Any], where: str) -> list[bytes]:
    if ("key" in table) == ("keys" in table):
        raise ConfigurationError(f'{where} needs either key = "…" or keys = […].')
    given = [table.pop("key")] if "key" in table else table.pop("keys")
    if not isinstance(given, list) or not given:
        raise ConfigurationError(f"{where}: keys must be a list with at least one public key.")
    for key in given:
        if not isinstance(key, str) or not is_public_key(key):
            raise ConfigurationError(
                f"{where}: {str(key)[:60]!r} is not a public key. A public key has 40 characters; "
                f"`gymwire keygen` prints it."
            )
    return [key.encode("ascii") for key in given]


def _rights(name: str, table: Mapping[str, Any], where: str, *, vouched: bool) -> Rights:
    for word, value in table.items():
        if word in _RIGHTS:
            if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
                raise ConfigurationError(
                    f'{where}: {word} must be a list of address patterns such as ["lab/*"], not '
                    f"{value!r:.100}."
                )
        elif word in _LIMITS:
            allowed = (int, float) if word == "steps_per_s" else (int,)
            if type(value) not in allowed or not 0 < value < MAX_INT:
                raise ConfigurationError(
                    f"{where}: {word} must be a {'' if float in allowed else 'whole '}number above "
                    f"0, not {value!r:.100}."
                )
        else:
            raise ConfigurationError(
                f"{where}: unknown setting {word!r}. Use {', '.join(_RIGHTS + _LIMITS)}."
            )
    fields: dict[str, Any] = {k: tuple(v) if k in _RIGHTS else v for k, v in table.items()}
    return Rights(name, vouched=vouched, **fields)
