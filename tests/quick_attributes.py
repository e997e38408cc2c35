"""Whether Python reads the attributes of an object quickly."""

from __future__ import annotations

import gc
import sys


def has_quick_attributes(instance: object, name: str) -> bool:
    """Return whether Python reads the attributes of an object, such as `name`, quickly.

    An object has no dict until its `__dict__` is used. From then on, Python 3.11 and 3.12 do not
    remember where an attribute is, unless the object was given another dict: the first one shares
    its keys with other objects, and is smaller.
    """
    dicts = [one for one in gc.get_referents(instance) if type(one) is dict and name in one]
    return all(sys.getsizeof(one) >= sys.getsizeof({**one}) for one in dicts)
