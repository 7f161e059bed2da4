"""A log that machines read is JSON line by line, and nobody waits for whoever reads it."""

from __future__ import annotations

import io
import json
import logging
import threading
from logging.handlers import QueueHandler
from typing import Any

from inference_node.ended import Outcome, outcome_of
from inference_node.errors import (
    AdapterCorrupt,
    AdapterNotFound,
    Cancelled,
    DeadlineExpired,
    EngineFailure,
    QueueFull,
    StoreDown,
)
from inference_node.telemetry.lines import WAITING, logging_to
from inference_node.telemetry.request_log import RequestLog
from tests.adapter_store.waiting import wait_until
from tests.inference_node.telemetry.ends import DIGEST, ENDED, ended

ours = logging.getLogger("inference_node.somewhere")


def documents(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_of_a_json_log_is_a_document_tracebacks_and_newlines_too() -> None:
    stream = io.StringIO()
    with logging_to(stream, level="INFO", format="json"):
        ours.info("two\nlines of %s", "text")
        try:
            raise ValueError("what\nwent wrong")
        except ValueError:
            ours.exception("it broke")
        logging.getLogger("somebody.else").info("not shown")
        logging.getLogger("somebody.else").warning("shown")
    first, second, third = documents(stream)
    assert first["message"] == "two\nlines of text"
    assert (first["level"], first["logger"]) == ("INFO", "inference_node.somewhere")
    assert first["time"].endswith("+00:00")
    assert "ValueError: what\nwent wrong" in second["exception"]
    assert third["message"] == "shown"


def test_a_request_is_told_by_all_that_tells_it_apart() -> None:
    stream = io.StringIO()
    with logging_to(stream, level="INFO", format="json"):
        RequestLog().ended(ENDED)
    (told,) = documents(stream)
    assert (
        told
        | {
            "request_id": "r1",
            "caller": "backend",
            "tenant": "acme",
            "asked": "pirate@v2",
            "adapter": "pirate",
            "version": "v2",
            "generation": 7,
            "digest": DIGEST,
            "outcome": "completed",
            "reason": "STOP",
            "prompt_tokens": 5,
            "cached_tokens": 2,
            "generated_tokens": 11,
            "seconds": 0.5,
            "first_token_seconds": 0.1,
            "queue_seconds": 0.01,
            "adapter_load_seconds": 0.005,
            "decode_seconds": 0.4,
        }
        == told
    )


def test_people_read_the_same_in_one_sentence() -> None:
    stream = io.StringIO()
    with logging_to(stream, level="INFO", format="text"):
        RequestLog().ended(ENDED)
        RequestLog().ended(
            ended(served=None, outcome=Outcome.REFUSED, reason="ADAPTER_NOT_FOUND", timings=None)
        )
    first, second = stream.getvalue().splitlines()
    assert "request r1 of acme completed STOP, served by pirate@v2 gen 7 abababababab" in first
    assert "refused ADAPTER_NOT_FOUND, served by nothing" in second


def test_only_what_is_the_nodes_fault_is_a_warning() -> None:
    kinds = {
        AdapterNotFound: Outcome.REFUSED,
        QueueFull: Outcome.REFUSED,
        Cancelled: Outcome.CANCELLED,
        DeadlineExpired: Outcome.EXPIRED,
        AdapterCorrupt: Outcome.FAILED,
        StoreDown: Outcome.FAILED,
        EngineFailure: Outcome.FAILED,
    }
    assert {kind: outcome_of(kind("x")) for kind in kinds} == kinds
    assert outcome_of(ZeroDivisionError()) is Outcome.FAILED
    stream = io.StringIO()
    with logging_to(stream, level="WARNING", format="json"):
        for outcome in Outcome:
            RequestLog().ended(ended(outcome=outcome))
    assert [told["outcome"] for told in documents(stream)] == ["failed"]


class Stuck(io.StringIO):
    """Nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.writing.set()
        self.go_on.wait(30)
        return super().write(text)


def test_nobody_waits_for_a_log_that_is_not_read_and_the_gap_is_told() -> None:
    stream = Stuck()
    with logging_to(stream, level="INFO", format="json"):
        ours.info("first")
        assert stream.writing.wait(10)
        for number in range(WAITING + 5):
            ours.info("line %d", number)
        stream.go_on.set()
        wait_until(lambda: stream.getvalue().count("\n") > WAITING, within_s=30)
        ours.info("after")
    told = [document["message"] for document in documents(stream)]
    assert told[:2] == ["first", "line 0"]
    assert told[-2:] == ["after", "5 lines were dropped: nobody read the log"]


def test_what_was_dropped_is_still_told_when_the_line_that_says_so_found_no_room() -> None:
    stream = Stuck()
    with logging_to(stream, level="INFO", format="json"):
        (hopper,) = (h for h in logging.getLogger().handlers if isinstance(h, QueueHandler))
        ours.info("first")
        assert stream.writing.wait(10)
        for number in range(WAITING + 5):
            ours.info("line %d", number)
        hopper.queue.get_nowait()
        ours.info("room for this one alone")
        stream.go_on.set()
        wait_until(lambda: stream.getvalue().count("\n") >= WAITING, within_s=30)
        ours.info("after")
    told = [document["message"] for document in documents(stream)]
    assert told[-2:] == ["after", "5 lines were dropped: nobody read the log"]
