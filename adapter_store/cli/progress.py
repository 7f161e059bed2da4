"""How far a push is, file by file: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from adapter_store.cli.console import colours, say, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from adapter_store.record import FileEntry


class Display(Protocol):
    """Shows files on their way; told by one thread at a time."""

    def advance(self, name: str, count: int) -> None: ...

    def done(self, name: str, *, total: int, sent: int) -> None: ...


class Uploads:
    """Bytes of each file that this run sent; safe for several threads."""

    def __init__(self, files: Sequence[FileEntry], *, tenant: str, display: Display) -> None:
        from adapter_store.layout import blob_prefix

        self._display = display
        self._lock = threading.Lock()
        self._sizes = {file.name: file.size for file in files}
        self._sent = dict.fromkeys(self._sizes, 0)
        # Equal chunks are sent once; the first file that has one is the one that sent it.
        self._awaited = {
            blob_prefix(tenant, chunk.sha256): (file.name, chunk.length)
            for file in reversed(files)
            for chunk in file.chunks
        }

    def put(self, key: str) -> None:
        """The store took `key`; counts when that is a chunk not seen before."""
        prefix = f"{key.partition('.')[0]}."
        with self._lock:
            name, count = self._awaited.pop(prefix, ("", 0))
            if count:
                self._sent[name] += count
                self._display.advance(name, count)

    def finish(self) -> None:
        """Every byte is in the store: what this run did not send was there before."""
        for name, total in self._sizes.items():
            self._display.done(name, total=total, sent=self._sent[name])

    def documents(self) -> list[dict[str, str | int]]:
        return [
            {"name": name, "size": total, "bytes_sent": self._sent[name]}
            for name, total in self._sizes.items()
        ]


class Silence:
    """Nobody is watching."""

    def advance(self, name: str, count: int) -> None:
        return

    def done(self, name: str, *, total: int, sent: int) -> None:
        return


class Lines:
    """One line a file, when it is done."""

    def advance(self, name: str, count: int) -> None:
        return

    def done(self, name: str, *, total: int, sent: int) -> None:
        say(f"{verdict(total, sent):6}  {name}  {size(total)}{_share(total, sent)}")


class Bars:
    """One bar a file, with speed and time left."""

    def __init__(self, progress: Progress, files: Sequence[FileEntry]) -> None:
        self._progress = progress
        self._sent = {file.name: 0 for file in files}
        self._tasks: dict[str, TaskID] = {
            file.name: progress.add_task(file.name, total=file.size, sent=0, verdict="")
            for file in files
        }

    def advance(self, name: str, count: int) -> None:
        task = self._tasks[name]
        self._sent[name] += count
        self._progress.update(task, advance=count, sent=self._sent[name], verdict="sending")

    def done(self, name: str, *, total: int, sent: int) -> None:
        word = f"{verdict(total, sent)}{_share(total, sent)}"
        self._progress.update(self._tasks[name], completed=total, sent=sent, verdict=word)


def verdict(total: int, sent: int) -> str:
    """`exists` when the store had every byte before."""
    return "exists" if total and not sent else "sent"


def _share(total: int, sent: int) -> str:
    return "" if sent == total else f", {size(sent)} sent"


@contextmanager
def display(files: Sequence[FileEntry], *, silent: bool) -> Iterator[Display]:
    """The display that fits where stderr goes."""
    if silent:
        yield Silence()
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield Bars(progress, files)
    else:
        yield Lines()


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class SpeedColumn(ProgressColumn):
        """Bytes a second, also of a file that went in one piece."""

        def render(self, task: Task) -> Text:
            count, seconds = task.fields["sent"], task.finished_time or task.elapsed
            return Text(f"{size(round(count / seconds))}/s" if count and seconds else "")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        SpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[verdict]}", markup=False),
        console=Console(stderr=True, no_color=not colours()),
    )
