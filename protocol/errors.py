"""Every error that gymwire raises, in one tree.

Each says what was wrong, whose fault it was and what to do; none lets a `zmq.ZMQError` through.

    GymwireError
    ├── UsageError                  the caller's fault: fix the call
    │   ├── AddressError            not a well-formed address or URL
    │   ├── BatchSizeError          not one action or seed for each environment (also a ValueError)
    │   ├── EncodingError           a value that cannot travel; `.path` says where it sits
    │   │   └── UnsupportedSpaceError
    │   ├── MoveError               a request that the dialogue does not allow now
    │   │   ├── ResetNeeded         step or render before reset (also a gymnasium ResetNeeded)
    │   │   └── EnvironmentClosed   anything after close (also a gymnasium ClosedEnvironmentError)
    │   ├── NoLearnerFits           no learner here handles these spaces
    │   └── ConfigurationError      options, files or keys that cannot be used as given
    ├── ProtocolError               the other side's fault: it broke the protocol
    │   ├── DecodingError           bytes that are not what the protocol says
    │   └── VersionMismatch         the other side speaks another version
    ├── ConnectionFailed            nobody's fault that we know of
    │   ├── BrokerUnreachable       no broker answers at the URL
    │   ├── RequestTimeout          no answer in the time that the caller allowed
    │   └── Denied                  the broker or the agent refuses this key
    ├── OfferError                  the address cannot be used
    │   ├── AddressUnknown          nobody offers it
    │   ├── AddressTaken            it stands for another environment already
    │   └── NoFreeSlot              all its slots are in use
    ├── EnvironmentSideError           the environment's side
    │   ├── EnvironmentFailed       the environment raised; `.remote_type`, `.remote_traceback`
    │   ├── EnvironmentLost         its agent died, froze or was cut off; the session is gone
    │   ├── ReplayMismatch          a replayed episode did not come out the same
    │   └── AttributeDenied         an attribute or method that the agent does not hand out
    └── Refused                     any other refusal, with the refuser's own words
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
    """The root of all errors of this project.

    Attributes:
        advice: what a program that catches it can do, which people at a command line cannot. Told
            after the text.
    """

    def __init__(self, *args: object, advice: str = "") -> None:
        super().__init__(*args)
        self.advice = advice

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} {self.advice}" if self.advice else text


class UsageError(GymwireError):
    """The caller asked for something that cannot be."""


class AddressError(UsageError):
    """Not a well-formed address or URL."""


class BatchSizeError(UsageError, ValueError):
    """A batch for a vector that has not one item for each of its environments."""


class EncodingError(UsageError):
    """A value that cannot travel.

    Attributes:
        path: where the value sits, e.g. `info["agents"][3]`; empty for the value itself.
    """

    def __init__(self, text: str, *, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class UnsupportedSpaceError(EncodingError):
    """A space that has no description in the protocol."""


class MoveError(UsageError):
    """A request that the dialogue does not allow in its present state."""


class ResetNeeded(MoveError, gymnasium.error.ResetNeeded):
    """A step or a render before the first reset."""


class EnvironmentClosed(MoveError, gymnasium.error.ClosedEnvironmentError):
    """A request after close."""


class NoLearnerFits(UsageError):
    """No learner of this project handles the environment's spaces."""


class ConfigurationError(UsageError):
    """Options, files or keys that cannot be used as they were given."""


class ProtocolError(GymwireError):
    """The other side broke the protocol."""


class DecodingError(ProtocolError):
    """Bytes that are not what the protocol says they should be.

    Attributes:
        path: where in the value the fault sits; empty for the value itself.
    """

    def __init__(self, text: str, *, path: str = "") -> None:
        super().__init__(text)
        self.path = path


class VersionMismatch(ProtocolError):
    """The other side speaks another version of the protocol."""


class ConnectionFailed(GymwireError):
    """The other side could not be reached, or did not answer."""


class BrokerUnreachable(ConnectionFailed):
    """No broker answers at the URL."""


class RequestTimeout(ConnectionFailed):
    """No answer came in the time that the caller allowed."""


class Denied(ConnectionFailed):
    """The broker or the agent does not allow this to this key."""


class OfferError(GymwireError):
    """The address cannot be used now."""


class AddressUnknown(OfferError):
    """No env agent offers environments under this address."""


class AddressTaken(OfferError):
    """The address already stands for another environment."""


class NoFreeSlot(OfferError):
    """Every slot of every agent that offers this address is in use."""


class EnvironmentSideError(GymwireError):
    """Something went wrong on the environment's side."""


class EnvironmentFailed(EnvironmentSideError):
    """The environment raised an exception; the agent that owns it lives on.

    Attributes:
        remote_type: the exception's qualified type name.
        remote_traceback: the traceback at the env agent, as text.
        env_index: which environment of a vector, None where that is not known.
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
    """The env agent died, froze or was cut off, and the session with it."""


class ReplayMismatch(EnvironmentSideError):
    """A replayed episode did not come out the same."""


class AttributeDenied(EnvironmentSideError, AttributeError):
    """An attribute or method that the env agent does not hand out."""


class Refused(GymwireError):
    """A refusal that has no class of its own; the text is the refuser's."""
