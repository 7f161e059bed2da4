"""A conversation on a terminal and through a pipe, with a real server."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from inference_node import errors
from inference_node.request import Delta, OnEvent, Request, Started
from tests.inference_node.cli.program import Run
from tests.inference_node.cli.terminal import Terminal
from tests.inference_node.rpc.scripted_engine import (
    ScriptedEngine,
    completed,
    fails,
    hangs,
    served,
)


def echoes(request: Request, emit: OnEvent, cancelled: threading.Event) -> None:
    """Say which adapter answers what, as the model sees it."""
    said = bytes(request.prompt).decode()
    emit(Started(served(request)))
    emit(Delta(f"[{request.adapter or 'base'}] {said}", (1, 2)))
    emit(completed(request, 2))


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(echoes)


def test_a_persona_switches_in_mid_conversation_and_knows_what_was_said(address: str) -> None:
    with Terminal("chat", "--address", address, "-a", "pirate") as terminal:
        terminal.wait_for("> ")
        terminal.type("ahoy\n")
        at = terminal.wait_for("[pirate] <user>ahoy")
        at = terminal.wait_for("pirate@v3 generation 7", after=at)
        at = terminal.wait_for("tokens/s", after=at)
        terminal.type("/adapter poet\n")
        at = terminal.wait_for("poet answers from now on", after=at)
        terminal.type("and now?\n")
        at = terminal.wait_for("[poet] <user>ahoy<assistant>[pirate] <user>ahoy<user>and", after=at)
        terminal.type("/adapter\n")
        at = terminal.wait_for("the base model answers", after=at)
        terminal.type("/reset\n")
        at = terminal.wait_for("forgotten", after=at)
        terminal.type("plain\n")
        at = terminal.wait_for("[base] <user>plain", after=at)
        terminal.wait_for("base model", after=at)
        terminal.type("/quit\n")
        assert terminal.leave() == 0


def test_help_lists_the_commands_and_the_end_of_input_leaves(address: str) -> None:
    with Terminal("chat", "--address", address) as terminal:
        at = terminal.wait_for("> ")
        terminal.type("/nonsense\n")
        at = terminal.wait_for("no such command: /nonsense", after=at)
        terminal.type("/help\n")
        for command in ("/adapter NAME", "/reset", "/quit"):
            at = terminal.wait_for(command, after=at)
        terminal.wait_for("> ", after=at)
        terminal.type("\x04")
        assert terminal.leave() == 0


def test_an_interrupt_stops_the_answer_and_not_the_conversation(
    address: str, engine: ScriptedEngine
) -> None:
    engine.script = hangs
    with Terminal("chat", "--address", address) as terminal:
        at = terminal.wait_for("> ")
        terminal.type("tell me everything\n")
        at = terminal.wait_for("one ", after=at)
        terminal.interrupt()
        at = terminal.wait_for("stopped", after=at)
        engine.script = echoes
        terminal.type("go on\n")
        terminal.wait_for("<user>tell me everything<assistant>one <user>go on", after=at)
    assert len(engine.cancelled) == 1


def test_an_error_is_told_with_what_to_do_and_the_turn_was_not_said(
    address: str, engine: ScriptedEngine
) -> None:
    engine.script = fails(errors.AdapterNotFound("there is no adapter ghost", hint="look"))
    with Terminal("chat", "--address", address, "-a", "ghost") as terminal:
        at = terminal.wait_for("> ")
        terminal.type("boo\n")
        at = terminal.wait_for("error: there is no adapter ghost", after=at)
        at = terminal.wait_for("hint: look", after=at)
        engine.script = echoes
        terminal.type("/adapter\n")
        at = terminal.wait_for("answers", after=at)
        terminal.type("hello\n")
        terminal.wait_for("[base] <user>hello", after=at)


def test_through_a_pipe_every_line_is_a_turn_and_only_answers_are_on_stdout(
    run: Run, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n/adapter poet\ntwo\n"))
    ran = run("chat", "--address", address, "--system", "be brief")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "[base] <system>be brief<user>one",
        "[poet] <system>be brief<user>one<assistant>[base] <system>be brief<user>one<user>two",
    ]
    assert "poet@v3" in ran.err
    assert ">" not in ran.err


def test_through_a_pipe_a_failure_ends_it_with_its_code(
    run: Run, address: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.script = fails(errors.AdapterNotFound("gone"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    ran = run("chat", "--address", address)
    assert (ran.code, ran.out, len(engine.submitted)) == (3, "", 1)
