"""The playground of a node, opened from its settings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from inference_node.cli.settings import NodeSettings
from inference_node.errors import BadConfiguration


@contextlib.contextmanager
def open_playground(settings: NodeSettings, tell: Callable[[str], None]) -> Iterator[None]:
    """For the block, where the settings ask for it.

    Raises BadConfiguration when its web server is not installed, or its address cannot be had.
    """
    listen = settings.playground_address()
    if not listen:
        yield
        return
    try:
        from inference_node.playground.web import Playground
    except ModuleNotFoundError as error:
        raise BadConfiguration(
            f"LORAPOOL_PLAYGROUND_LISTEN is set, and {error.name} is not installed",
            hint="pip install 'lorapool[node]'",
        ) from error
    with Playground(listen, node=settings.listen) as page:
        tell(f"page      {page.url} for a browser on this machine")
        yield
