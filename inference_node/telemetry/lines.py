"""How a log line is written: for people, or one JSON document each for whoever collects them."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, TextIO

Format = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
FIELDS = "fields"
"""`extra={FIELDS: {...}}` adds to a JSON line what a text line says in its message."""
WAITING = 10_000
"""Lines that wait for a slow reader of the log; further ones are dropped, and counted."""
OURS = ("inference_node", "adapter_store")


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, the record's own fields, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class _Hopper(logging.handlers.QueueHandler):
    """Hands lines over without waiting for anybody who does not read them."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self._lost = 0
        self._counting = threading.Lock()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: whoever writes it formats it."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            with self._counting:
                self._lost += 1
        else:
            self._tell_lost()

    def _tell_lost(self) -> None:
        """As soon as there is room for one line more."""
        with self._counting, contextlib.suppress(queue.Full):
            if self._lost:
                self.queue.put_nowait(_dropped(self._lost))
                self._lost = 0


def _dropped(number: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": f"{number} lines were dropped: nobody read the log",
        }
    )


@contextlib.contextmanager
def logging_to(stream: TextIO, *, level: str, format: Format) -> Iterator[None]:
    """Log to `stream` while the body runs; no thread waits for whoever reads it.

    Others' loggers say warnings at most: botocore writes down what signs requests.
    """
    lines: queue.Queue[logging.LogRecord] = queue.Queue(WAITING)
    writer = logging.StreamHandler(stream)
    writer.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(TEXT))
    listener = logging.handlers.QueueListener(lines, writer)
    hopper = _Hopper(lines)
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    root.addHandler(hopper)
    for ours in OURS:
        logging.getLogger(ours).setLevel(level)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(hopper)
        listener.stop()
