"""What a peer understands beyond release 0.1.0 (docs/protocol.md §3.11).

A peer lists its capabilities in HELLO, WELCOME, OFFER, OPEN and the `limits` of OPENED; two peers
use what both list. A peer of release 0.1.0 lists none and ignores the lists of others. A new wire
feature gets a name here, and code asks for that name before it uses the feature.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from gymwire.protocol.errors import VersionMismatch

__all__ = [
    "CAPABILITIES",
    "EACH",
    "EACH_MODES",
    "EXTENSIONS",
    "KINDS",
    "OBSERVE",
    "PAGES",
    "VALUES",
    "WATCH",
    "common",
    "require",
]

EXTENSIONS: Final = "extensions"
"""The peer reads extension fields (§3.11)."""

PAGES: Final = "pages"
"""The peer takes FOUND in pages (§6.4)."""

KINDS: Final = "kinds"
"""The peer reads the kind of environment in OPEN (§4.2.3)."""

EACH: Final = "each"
"""The env agent takes CALL for some environments of a vector (§4.1.3)."""

EACH_MODES: Final = ("each-get", "each-set", "each-call", "each-has", "each-wrapped")
"""The modes of such a CALL."""

VALUES: Final = "values"
"""The peer reads the extension types 8 to 10 (§10)."""

OBSERVE: Final = "observe"
"""The broker takes OBSERVE, REPORT and STOP (§6.5); the env agent takes STOP (§6.7)."""

WATCH: Final = "watch"
"""The broker and the env agent take WATCH (§6.8)."""

CAPABILITIES: Final = (EXTENSIONS, PAGES, KINDS, EACH, VALUES, OBSERVE, WATCH)
"""What this release understands."""


def common(theirs: object) -> frozenset[str]:
    """Return the capabilities that both sides have, from the other side's list, if it is one."""
    if not isinstance(theirs, list):
        return frozenset()
    return frozenset(name for name in theirs if isinstance(name, str) and name in CAPABILITIES)


def require(capability: str, have: Collection[str], *, who: str, theirs: str, ours: str) -> None:
    """Check that the other side has a capability that this call cannot do without.

    Args:
        capability: its name.
        have: what `common` returned.
        who: the other side, e.g. "the broker at tcp://127.0.0.1:5555".
        theirs: its software, as in HELLO and WELCOME.
        ours: the software of this side.

    Raises VersionMismatch naming both versions and who must upgrade.
    """
    if capability not in have:
        raise VersionMismatch(
            f"This needs the capability {capability!r}, which {who} ({theirs}) lacks; this side is "
            f"{ours}. Upgrade {who}."
        )
