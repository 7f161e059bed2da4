"""`inference-node chat`: a conversation, whose persona can change at every turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli.answers import rate, version
from inference_node.cli.console import exit_code, report, say
from inference_node.cli.reach import (
    DEFAULT_ADDRESS,
    Address,
    Ca,
    Cert,
    Key,
    Tls,
    TokenFile,
    open_client,
)
from inference_node.errors import InvalidRequest, NodeError
from inference_node.request import Sampling, Stopping

if TYPE_CHECKING:
    from inference_node.client import Client, Message

HELP = """\
/adapter NAME   go on as another persona: name, name@version; without a name, the base model
/reset          forget what was said
/help           this
/quit           leave; so does the end of input. Ctrl-C stops an answer"""


def chat(
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="name, name@version or name@sha256:<digest>.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Who owns the adapters.")] = "",
    system: Annotated[str, typer.Option(help="Instructions for the whole conversation.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Equal seeds, equal answers.")] = None,
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for an answer.")] = 120.0,
) -> None:
    """Talk to a node, line by line; /adapter NAME goes on as another persona, /help says the rest.

    From a pipe every line is a turn, only answers are on stdout, and the first failure ends it with
    the exit code that `generate` has for it.
    """
    interactive = sys.stdin.isatty()
    with open_client(address, tls=tls, ca=ca, cert=cert, key=key, token_file=token_file) as client:
        conversation = Conversation(
            client,
            adapter=adapter,
            tenant=tenant,
            system=system,
            sampling=Sampling(temperature=temperature, seed=seed),
            stopping=Stopping(max_new_tokens=max_new_tokens),
            timeout=timeout,
        )
        if interactive:
            say("/help says what can be done, /quit leaves")
        for line in _lines(interactive):
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                conversation.obey(line)
            elif line:
                _turn(conversation, line, interactive=interactive)


@dataclass(slots=True)
class Conversation:
    """What was said so far, and who answers next."""

    client: Client
    adapter: str
    tenant: str
    system: str
    sampling: Sampling
    stopping: Stopping
    timeout: float
    turns: list[Message] = field(default_factory=list)

    def obey(self, line: str) -> None:
        """Do what a line that begins with a slash says."""
        command, _, rest = line.partition(" ")
        match command:
            case "/adapter":
                self.adapter = rest.strip()
                say(f"{self.adapter or 'the base model'} answers from now on")
            case "/reset":
                self.turns.clear()
                say("forgotten")
            case "/help":
                say(HELP)
            case _:
                say(f"no such command: {command}; /help lists them")

    def ask(self, text: str) -> None:
        """One turn, its answer told as it comes. Raises NodeError, and then it was not said."""
        from inference_node.client import Message

        opening = [Message("system", self.system)] if self.system else []
        question = Message("user", text)
        heard: list[str] = []
        with self.client.stream(
            [*opening, *self.turns, question],
            adapter=self.adapter,
            tenant=self.tenant,
            sampling=self.sampling,
            stopping=self.stopping,
            timeout=self.timeout,
        ) as stream:
            try:
                for piece in stream:
                    heard.append(piece)
                    typer.echo(piece, nl=False)
                    sys.stdout.flush()
                answer = stream.result
                told = f"{version(answer.served)} · {rate(answer):.1f} tokens/s"
            except KeyboardInterrupt:
                told = "stopped"
            finally:
                if heard:
                    typer.echo()
        self.turns += [question, Message("assistant", "".join(heard))]
        say(told)


def _turn(conversation: Conversation, line: str, *, interactive: bool) -> None:
    try:
        conversation.ask(line)
    except NodeError as error:
        report(error)
        if not interactive:
            raise typer.Exit(exit_code(error)) from None
        if isinstance(error, InvalidRequest) and conversation.turns:
            say("if the conversation has become too long, /reset forgets it")


def _lines(interactive: bool) -> Iterator[str]:
    if not interactive:
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  makes input() a line editor with a memory

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            typer.echo()
            return
