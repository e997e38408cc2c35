"""The exceptions that a user of gymwire may catch; each can also be imported from `gymwire`."""

from gymwire.protocol import errors as _errors
from gymwire.protocol.errors import *  # noqa: F403 - `__all__` there is the list

__all__ = _errors.__all__
__doc__ = _errors.__doc__
