"""Names that anything was ever brought to this node for. Pure Python."""

from __future__ import annotations

from collections import OrderedDict

from inference_node.adapters.versions import Entry
from inference_node.engine.names import Name

REMEMBERED = 65_536
"""More than any node holds adapters."""


class Brought:
    """Remembers those for which something was brought last."""

    def __init__(self) -> None:
        self._names: OrderedDict[Name, None] = OrderedDict()

    def __contains__(self, name: Name) -> bool:
        return name in self._names

    def note(self, entry: Entry) -> None:
        """It is here, or on its way."""
        name = (entry.tenant, entry.adapter)
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > REMEMBERED:
            self._names.popitem(last=False)
