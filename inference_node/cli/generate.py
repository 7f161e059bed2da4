"""`inference-node generate`: one prompt, answered as it is decoded."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from inference_node.cli.answers import rate, version
from inference_node.cli.console import error_document, exit_code, out, say
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
from inference_node.errors import NodeError
from inference_node.request import Output, Sampling, Stopping

if TYPE_CHECKING:
    from inference_node.client import Stream


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from stdin.")],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="name, name@version or name@sha256:<digest>.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="Who owns the adapter.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep tokens up to this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Keep so many tokens; 0 is all.")] = 0,
    min_p: Annotated[
        float, typer.Option(help="Keep tokens from this share of the likeliest one's probability.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: fewer tokens of prompt and answer again.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Taken from the logits of the answer's tokens.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="The same, once for every time a token came.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKEN_ID=BIAS", help="Added to a token's logit; -100 forbids it."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Equal seeds, equal answers.")] = None,
    min_new_tokens: Annotated[int, typer.Option(min=0, help="Shortest answer.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    stop_token_id: Annotated[
        list[int] | None, typer.Option(min=0, help="Token that ends the answer.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the model's end of text.")
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs", help="How likely each token was.")
    ] = False,
    top_logprobs: Annotated[
        int, typer.Option(min=0, help="With --logprobs: the likeliest tokens at each place.")
    ] = 0,
    echo: Annotated[bool, typer.Option("--echo", help="The prompt too.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    min_generation: Annotated[
        int, typer.Option(min=0, help="Refuse an older generation of the adapter.")
    ] = 0,
    priority: Annotated[int, typer.Option(help="-10 to 10; higher goes first.")] = 0,
    affinity_key: Annotated[
        str, typer.Option(help="In a split, equal keys get the same version.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object at the end, no live text.")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds.")] = 120.0,
) -> None:
    """Ask a node, with or without an adapter, and see the answer come.

    Exit codes: 2 bad request, 3 no such adapter, 4 a condition does not hold, 5 damaged adapter,
    6 no node, 7 no room now, 8 too late.
    """
    from inference_node.client import Message

    text = sys.stdin.read() if prompt == "-" else prompt
    began = time.monotonic()
    with open_client(address, tls=tls, ca=ca, cert=cert, key=key, token_file=token_file) as client:
        stream = client.stream(
            text if raw else [Message("user", text)],
            adapter=adapter,
            tenant=tenant,
            sampling=Sampling(
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                logit_bias=_biases(logit_bias or []),
                seed=seed,
            ),
            stopping=Stopping(
                max_new_tokens=max_new_tokens,
                min_new_tokens=min_new_tokens,
                stop=tuple(stop or ()),
                stop_token_ids=tuple(stop_token_id or ()),
                ignore_eos=ignore_eos,
            ),
            output=Output(logprobs=logprobs, top_logprobs=top_logprobs, echo=echo),
            min_generation=min_generation,
            priority=priority,
            affinity_key=affinity_key,
            timeout=timeout,
        )
        with stream:
            if as_json:
                _print_document(stream)
            else:
                _print_live(stream, began)


def _biases(pairs: list[str]) -> dict[int, float]:
    found = {}
    for pair in pairs:
        token_id, _, bias = pair.partition("=")
        try:
            found[int(token_id)] = float(bias)
        except ValueError:
            raise typer.BadParameter(
                f"{pair!r} is not TOKEN_ID=BIAS", param_hint="--logit-bias"
            ) from None
    return found


def _print_live(stream: Stream, began: float) -> None:
    first = 0.0
    for piece in stream:
        if not first and stream.echo is not None:
            typer.echo(stream.echo.text, nl=False)
        first = first or time.monotonic() - began
        typer.echo(piece, nl=False)
        sys.stdout.flush()
    typer.echo()
    answer = stream.result
    for each in answer.logprobs:
        best = " ".join(f"{top.text!r} {top.logprob:.3f}" for top in each.top)
        say(f"{each.text!r} {each.logprob:.3f} rank {each.rank} {best}".rstrip())
    say(
        f"{version(answer.served)} · first token {1e3 * first:.0f} ms · {rate(answer):.1f} tokens/s"
    )


def _print_document(stream: Stream) -> None:
    from dataclasses import asdict

    try:
        answer = stream.result
    except NodeError as error:
        out(error_document(error))
        raise typer.Exit(exit_code(error)) from None
    out(asdict(answer) | {"finish_reason": answer.finish_reason.value})
