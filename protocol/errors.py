"""The exceptions of gymwire.

Each message says what was wrong, whose fault it was and what to do. Errors of ZeroMQ never escape.

    GymwireError
    ├── UsageError                  the caller's fault: fix the call
    │   ├── AddressError            malformed address or URL
    │   ├── BatchSizeError          wrong number of actions or seeds (also a ValueError)
    │   ├── EncodingError           value that cannot be serialized; `.path` says where it is
    │   │   └── UnsupportedSpaceError
    │   ├── MoveError               request that the dialogue does not allow now
    │   │   ├── ResetNeeded         step or render before reset (also a gymnasium ResetNeeded)
    │   │   └── EnvironmentClosed   anything after close (also a gymnasium ClosedEnvironmentError)
    │   ├── NoLearnerFits           no built-in learner handles these spaces
    │   └── ConfigurationError      unusable option, file or key
    ├── ProtocolError               the other side's fault: it broke the protocol
    │   ├── DecodingError           malformed bytes
    │   └── VersionMismatch         the other side's version is incompatible
    ├── ConnectionFailed            the other side cannot be reached or does not answer
    │   ├── BrokerUnreachable       no broker answers at the URL, or it has become silent
    │   ├── RequestTimeout          no answer within the time that the caller allowed
    │   └── Denied                  the broker or the env agent refuses this key
    ├── OfferError                  the address cannot be used now
    │   ├── AddressUnknown          no env agent offers it
    │   ├── AddressTaken            another environment is offered under it
    │   └── NoFreeSlot              no slot of it can be used now
    ├── EnvironmentSideError        a failure on the environment's side
    │   ├── EnvironmentFailed       the environment raised; `.remote_type`, `.remote_traceback`
    │   ├── EnvironmentLost         the session is lost, as by the end of its env agent
    │   ├── ReplayMismatch          a replayed episode had a different result
    │   └── AttributeDenied         attribute or method that the env agent does not expose
    └── Refused                     any other refusal, in the words of the other side
"""

from __future__ import annotations

import gymnasium.error

__all__ = [
    "AddressError",
    "AddressTaken",
    "AddressUnknown",
    "AttributeDenied",
    "BatchSizeError",
    "BrokerUnreachable",
    "ConfigurationError",
    "ConnectionFailed",
    "DecodingError",
    "Denied",
    "EncodingError",
    "EnvironmentClosed",
    "EnvironmentFailed",
    "EnvironmentLost",
    "EnvironmentSideError",
    "GymwireError",
    "MoveError",
    "NoFreeSlot",
    "NoLearnerFits",
    "OfferError",
    "ProtocolError",
    "Refused",
    "ReplayMismatch",
    "RequestTimeout",
    "ResetNeeded",
    "UnsupportedSpaceError",
    "UsageError",
    "VersionMismatch",
]


class GymwireError(Exception):
    """The base class of all exceptions of gymwire.

    Attributes:
        advice: what a program that catches it can do and a person at a command line cannot. `str`
            appends it to the message.
    """

    def __init__(self, *args: object, advice: str = "") -> None:
        super().__init__(*args)
        self.advice = advice

    def __str__(self) -> str:
        text = BaseException.__str__(self)  # a KeyError's own would be the repr of the text
        return f"{text} {self.advice}" if self.advice else text


class UsageError(GymwireError):
    """The caller asked for something impossible."""


class AddressError(UsageError):
    """The address or URL is malformed."""


class BatchSizeError(UsageError, ValueError):
    """The batch does not have one item for each environment of the vector."""


class EncodingError(UsageError):
    """The value cannot be serialized.

    Attributes:
        path: where the value is, e.g. `info["agents"][3]`; empty for the value itself.
    """

    def __init__(self, text: str, *, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class UnsupportedSpaceError(EncodingError):
    """The protocol has no description for this space."""


class MoveError(UsageError):
    """The dialogue does not allow this request in its present state."""


class ResetNeeded(MoveError, gymnasium.error.ResetNeeded):
    """The environment must be reset before the first step or render."""


class EnvironmentClosed(MoveError, gymnasium.error.ClosedEnvironmentError):
    """The environment is closed."""


class NoLearnerFits(UsageError):
    """No built-in learner handles the spaces of this environment."""


class ConfigurationError(UsageError):
    """An option, a file or a key cannot be used."""


class ProtocolError(GymwireError):
    """The other side broke the protocol."""


class DecodingError(ProtocolError):
    """The bytes do not follow the protocol.

    Attributes:
        path: where in the value the fault is; empty for the value itself.
    """

    def __init__(self, text: str, *, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class VersionMismatch(ProtocolError):
    """The other side's version is incompatible: the message says who must upgrade."""


class ConnectionFailed(GymwireError):
    """The other side could not be reached, or did not answer."""


class BrokerUnreachable(ConnectionFailed):
    """No broker answers at the URL, or it has been silent for `timeout_s`.

    Attributes:
        url_source: what sets the URL, such as an option or a file. `str` then advises to check it;
            "": the message says itself what to do.
        bind: the option that lets a broker listen at the URL, for the advice; "": none is needed,
            or the URL is that of another host.
    """

    def __init__(
        self, *args: object, advice: str = "", url_source: str = "", bind: str = ""
    ) -> None:
        super().__init__(*args, advice=advice)
        self.url_source, self.bind = url_source, bind

    def __str__(self) -> str:
        text = super().__str__()
        if not self.url_source:
            return text
        return (
            f"{text} Start one with `gymwire broker{self.bind}`, check the URL "
            f"({self.url_source}) and the firewall, or wait longer (--wait, wait_s=)."
        )


class RequestTimeout(ConnectionFailed):
    """No answer came within the time that the caller allowed."""


class Denied(ConnectionFailed):
    """The broker or the env agent does not allow this key to do this."""


class OfferError(GymwireError):
    """The address cannot be used now."""


class AddressUnknown(OfferError):
    """No env agent offers environments under this address."""


class AddressTaken(OfferError):
    """Another environment is offered under this address."""


class NoFreeSlot(OfferError):
    """No env agent that offers this address has a slot that can be used now."""


class EnvironmentSideError(GymwireError):
    """Something went wrong on the environment's side."""


class EnvironmentFailed(EnvironmentSideError):
    """The environment raised an exception. Its env agent continues to run.

    Attributes:
        remote_type: the qualified name of the exception's type.
        remote_traceback: the traceback in the env agent, as text.
        env_index: the index of the environment in a vector; None if unknown.
    """

    env_index: int | None = None

    def __init__(self, text: str, *, remote_type: str = "", remote_traceback: str = "") -> None:
        super().__init__(text)
        self.remote_type = remote_type
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        text = super().__str__()
        if not self.remote_traceback:
            return text
        return f"{text}\n\nTraceback at the env agent:\n{self.remote_traceback.rstrip()}"


class EnvironmentLost(EnvironmentSideError):
    """The session is lost.

    Its env agent or environment is gone, or an operator, the policy or the lease ended it.

    Attributes:
        ended_by: "operator", "policy" or "environment" if one of these ended it; "": none of these,
            or unknown. Later releases may send other values.
    """

    def __init__(self, *args: object, advice: str = "", ended_by: str = "") -> None:
        super().__init__(*args, advice=advice)
        self.ended_by = ended_by


class ReplayMismatch(EnvironmentSideError):
    """A replayed episode had a different result."""


class AttributeDenied(EnvironmentSideError, AttributeError):
    """The env agent does not expose this attribute or method."""


class Refused(GymwireError):
    """The other side refused, in its own words, for a reason without a class of its own."""
