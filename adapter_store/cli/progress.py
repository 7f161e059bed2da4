"""How far a push is, file by file: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from adapter_store.cli.console import colours, say, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from adapter_store.record import Chunk, FileEntry


class Display(Protocol):
    """Shows files on their way; told by one thread at a time."""

    def moved(self, name: str, *, placed: int, sent: int) -> None:
        """So many bytes of it are in the store now, and so many of them this run sent."""
        ...

    def done(self, name: str, *, total: int, sent: int) -> None: ...


class Uploads:
    """The UploadProgress of a push: what of each file this run sent."""

    def __init__(self, files: Sequence[FileEntry], display: Display) -> None:
        self._display = display
        self._sizes = {file.name: file.size for file in files}
        self._sent = dict.fromkeys(self._sizes, 0)
        self._placed = dict.fromkeys(self._sizes, 0)

    def planned(self, files: Sequence[FileEntry]) -> None:
        self._placed = dict.fromkeys(self._sizes, 0)

    def sent(self, file: str, chunk: Chunk) -> None:
        self._sent[file] += chunk.length
        self._move(file, chunk)

    def reused(self, file: str, chunk: Chunk) -> None:
        self._move(file, chunk)

    def _move(self, file: str, chunk: Chunk) -> None:
        self._placed[file] += chunk.length
        self._display.moved(file, placed=self._placed[file], sent=self._sent[file])

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

    def moved(self, name: str, *, placed: int, sent: int) -> None:
        return

    def done(self, name: str, *, total: int, sent: int) -> None:
        return


class Lines:
    """One line for each chunk of a file of several, and one for the file when it is done."""

    def __init__(self, files: Sequence[FileEntry]) -> None:
        self._sizes = {file.name: file.size for file in files}

    def moved(self, name: str, *, placed: int, sent: int) -> None:
        total = self._sizes[name]
        if placed < total:
            say(f"{'':6}  {name}  {size(placed)} of {size(total)}")

    def done(self, name: str, *, total: int, sent: int) -> None:
        say(f"{verdict(total, sent):6}  {name}  {size(total)}{_share(total, sent)}")


class Bars:
    """One bar a file, with speed and time left."""

    def __init__(self, progress: Progress, files: Sequence[FileEntry]) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {
            file.name: progress.add_task(file.name, total=file.size, sent=0, verdict="")
            for file in files
        }

    def moved(self, name: str, *, placed: int, sent: int) -> None:
        word = "sending" if sent else "checking"
        self._progress.update(self._tasks[name], completed=placed, sent=sent, verdict=word)

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
        yield Lines(files)


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
