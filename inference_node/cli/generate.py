"""`inference-node generate`: one prompt, answered as it is decoded."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli.console import error_document, exit_code, out, say
from inference_node.errors import NodeError
from inference_node.request import Sampling, Stopping

if TYPE_CHECKING:
    from inference_node.client import Answer, Stream


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="name, name@version or name@sha256:<digest>.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Who owns the adapter.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Equal seeds, equal answers.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    min_generation: Annotated[
        int, typer.Option(min=0, help="Refuse an older generation of the adapter.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end, no live text.")
    ] = False,
    address: Annotated[
        str, typer.Option(envvar="LORAPOOL_LISTEN", help="The node.")
    ] = "127.0.0.1:50051",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 120.0,
) -> None:
    """Ask a node, with or without an adapter, and see the answer come.

    Exit codes: 2 bad request, 3 no such adapter, 4 a condition does not hold, 5 damaged adapter,
    6 no node, 7 no room now, 8 too late.
    """
    from inference_node.client import Client, Message

    text = sys.stdin.read() if prompt == "-" else prompt
    began = time.monotonic()
    with Client(address) as client:
        stream = client.stream(
            text if raw else [Message("user", text)],
            adapter=adapter,
            tenant=tenant,
            sampling=Sampling(temperature=temperature, seed=seed),
            stopping=Stopping(max_new_tokens=max_new_tokens, stop=tuple(stop or ())),
            min_generation=min_generation,
            timeout=timeout,
        )
        with stream:
            if as_json:
                _print_document(stream)
            else:
                _print_live(stream, began)


def _print_live(stream: Stream, began: float) -> None:
    first = 0.0
    for piece in stream:
        first = first or time.monotonic() - began
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
    answer = stream.result
    say(f"{_version(answer)} · first token {1e3 * first:.0f} ms · {_rate(answer):.1f} tokens/s")


def _print_document(stream: Stream) -> None:
    from dataclasses import asdict

    try:
        answer = stream.result
    except NodeError as error:
        out(error_document(error))
        raise typer.Exit(exit_code(error)) from None
    out(asdict(answer) | {"finish_reason": answer.finish_reason.value})


def _version(answer: Answer) -> str:
    served = answer.served
    if not served.adapter:
        return "base model"
    return (
        f"{served.adapter}@{served.version} generation {served.generation} "
        f"sha256:{served.digest[:12]}"
    )


def _rate(answer: Answer) -> float:
    """Tokens a second after the first one."""
    decode = answer.timings.decode
    return (answer.usage.completion_tokens - 1) / decode if decode > 0 else 0.0
