"""Try to open another session in the place of a lost one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gymwire.protocol.errors import AddressUnknown, EnvironmentLost, NoFreeSlot

if TYPE_CHECKING:
    from gymwire.learner_agent.client.connection import BrokerConnection

RETRY_S = 0.1  # the pause between two attempts


def open_another(
    connection: BrokerConnection, attempt: Callable[[], object], timeout_s: float, failed: str
) -> None:
    """Call `attempt`, which opens another session, until one takes the place of the lost one.

    Raises EnvironmentLost after `timeout_s`, with the text `failed` and the last reason.
    """
    deadline = connection.clock() + timeout_s
    while True:
        try:
            attempt()
            return
        except (AddressUnknown, NoFreeSlot, EnvironmentLost) as error:
            if connection.clock() > deadline:
                raise EnvironmentLost(f"{failed}: {error}") from error
            connection.wait(lambda: False, connection.clock() + RETRY_S)
