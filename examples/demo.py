"""The whole product in one terminal: a 4-bit base, three personas, a swap, a rollback, refusals.

Everything here is real: SeaweedFS and Valkey on loopback, `inference-node serve` as its own
process, the `adapter-store` tool, gRPC in between. Run it with `make demo`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from adapter_store.bases import list_bases
from adapter_store.embedded import EmbeddedStack
from adapter_store.record import BaseCard
from adapter_store.s3 import open_s3
from inference_node.client import Answer, AsyncClient, Message
from inference_node.errors import NodeError
from inference_node.request import ModelInfo, Served, Stopping

PERSONAS = Path(os.path.relpath(Path(__file__).parent / "personas" / "adapters"))
QUESTION = "What do you do when it starts to rain?"
LONG_QUESTION = "Tell me a long story about a day at the sea."
START_SECONDS = 120.0
COLOURS = {"": "white", "pirate": "yellow", "poet": "magenta", "chef": "green"}

console = Console(highlight=False, width=min(110, shutil.get_terminal_size((110, 24)).columns))


class DemoFailed(Exception):
    """Something did not happen as this demo promises."""


def step(number: int, title: str) -> None:
    console.print()
    console.print(Rule(f"[bold]{number}. {title}", align="left"))


def expect(truth: bool, promise: str) -> None:
    if not truth:
        raise DemoFailed(promise)
    console.print(f"  [green]✓[/] {promise}")


def version_of(served: Served) -> str:
    if not served.adapter:
        return "base model"
    return (
        f"{served.adapter}@{served.version}, generation {served.generation}, "
        f"sha256:{served.digest[:12]}"
    )


def show(answer: Answer) -> None:
    served = answer.served
    decode = answer.timings.decode
    rate = (answer.usage.completion_tokens - 1) / decode if decode > 0 else 0.0
    console.print(
        Panel(
            Text(answer.text.strip()),
            title=f"[bold]{served.adapter or 'base'}",
            subtitle=f"{version_of(served)} · first token {answer.timings.ttft * 1e3:.0f} ms · "
            f"{rate:.0f} tokens/s",
            border_style=COLOURS.get(served.adapter, "cyan"),
            title_align="left",
            subtitle_align="left",
        )
    )


class Shell:
    """Runs the project's own commands as a user would, and shows them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**os.environ, **environment}
        self._bin = Path(sys.executable).parent

    def run(self, *command: str, ok: tuple[int, ...] = (0,)) -> None:
        """Show a command and what it prints; on a terminal it draws its own progress there."""
        console.print(f"[bold cyan]$[/] {' '.join(command)}", soft_wrap=True)
        done = subprocess.run(
            [self._bin / command[0], *command[1:]],
            env=self._environment,
            capture_output=not console.is_terminal,
            text=True,
            check=False,
        )
        for line in ((done.stderr or "") + (done.stdout or "")).splitlines():
            console.print(Text(f"  {line}"), soft_wrap=True)
        if done.returncode not in ok:
            raise DemoFailed(f"{command[0]} {command[1]} ended with {done.returncode}")

    def quiet(self, *command: str) -> str:
        """Standard output of a command that is not worth showing."""
        done = subprocess.run(
            [self._bin / command[0], *command[1:]],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def publish(self, folder: Path, name: str, label: str) -> int:
        """Publish a folder; the generation it got."""
        self.run("adapter-store", "push", str(folder), "--name", name, "--version", label)
        newest = json.loads(self.quiet("adapter-store", "show", name, "--json"))
        return int(newest["generation"])


@contextmanager
def running_stack(state: Path) -> Iterator[tuple[EmbeddedStack, Shell, str]]:
    """SeaweedFS, Valkey and a node; everything stops at the end."""
    with EmbeddedStack(state) as stack:
        shell = Shell(stack.endpoints.environment())
        address = f"127.0.0.1:{free_port()}"
        stack.spawn(
            "node",
            [str(Path(sys.executable).parent / "inference-node"), "serve"],
            env={
                **os.environ,
                **stack.endpoints.environment(),
                "LORAPOOL_LISTEN": address,
            },
        )
        yield stack, shell, address


def base_card(stack: EmbeddedStack) -> BaseCard:
    """The card of the base, which the node registered when it started."""
    found = stack.endpoints
    store = open_s3(
        endpoint=found.s3_endpoint,
        bucket=found.s3_bucket,
        region=found.s3_region,
        access_key=found.s3_access_key,
        secret_key=found.s3_secret_key,
    )
    return list_bases(store)[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def wait_ready(client: AsyncClient, stack: EmbeddedStack) -> ModelInfo:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return await client.model_info(timeout=2.0)
        except NodeError:
            if not stack.is_running("node") or time.monotonic() > deadline:
                log = stack.log("node").read_text(errors="replace")
                raise DemoFailed(f"the node did not start:\n{log[-2000:]}") from None
            await asyncio.sleep(0.2)


def ask_short(client: AsyncClient, adapter: str, **more: int) -> asyncio.Task[Answer]:
    return asyncio.ensure_future(
        client.generate(
            [Message("user", QUESTION)],
            adapter=adapter,
            stopping=Stopping(max_new_tokens=60),
            min_generation=more.get("min_generation", 0),
        )
    )


async def four_at_once(client: AsyncClient) -> None:
    """One prompt to the base and three personas, in one batch."""
    console.print(f"[bold]{QUESTION}[/]  [dim]asked four times at the same moment[/]")
    tasks = [ask_short(client, name) for name in ("", "pirate", "poet", "chef")]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, (await client.model_info()).running)
        await asyncio.sleep(0.05)
    answers = [task.result() for task in tasks]
    for answer in answers:
        show(answer)
    expect(most == 4, f"{most} requests were decoded in one batch")
    expect(len({answer.text for answer in answers}) == 4, "four different answers")


async def swap_mid_stream(client: AsyncClient, shell: Shell) -> None:
    """Publish version 2 while a stream of version 1 runs."""
    stream = client.stream(
        [Message("user", LONG_QUESTION)],
        adapter="pirate",
        stopping=Stopping(max_new_tokens=400, ignore_eos=True),
    )
    pieces: list[str] = []
    published: asyncio.Future[int] | None = None
    published_at = 0
    async for piece in stream:
        pieces.append(piece)
        if published is None and len(pieces) == 5:
            published = asyncio.get_running_loop().run_in_executor(
                None, shell.publish, PERSONAS / "pirate" / "v2", "pirate", "v2"
            )
        if published is not None and published.done() and not published_at:
            published_at = len(pieces)
    assert published is not None
    generation = await published
    result = stream.result
    story = "".join(pieces).strip().splitlines()[0]
    console.print(f"  [dim]“{story} …”  {result.usage.completion_tokens} tokens[/]")
    console.print(f"  the stream ended on [bold]{version_of(result.served)}[/]")
    expect(0 < published_at < len(pieces), "version 2 was published while the stream ran")
    expect(result.served.version == "v1", "the running stream stayed on version 1 to its end")
    after = await ask_short(client, "pirate", min_generation=generation)
    show(after)
    expect(after.served.version == "v2", "the next request was answered by version 2")


async def roll_back(client: AsyncClient, shell: Shell) -> None:
    shell.run("adapter-store", "rollback", "pirate", "--to", "v1")
    newest = json.loads(shell.quiet("adapter-store", "show", "pirate", "--json"))
    answer = await ask_short(client, "pirate", min_generation=int(newest["generation"]))
    show(answer)
    expect(
        answer.served.version == "v1" and answer.served.generation == 3,
        "version 1 answers again, under generation 3",
    )


async def refuse(client: AsyncClient, shell: Shell, scratch: Path, card: BaseCard) -> None:
    """What must not be served is a typed error, and nobody else notices."""
    tokens = 300
    beside = asyncio.ensure_future(
        client.generate(
            [Message("user", LONG_QUESTION)],
            adapter="poet",
            stopping=Stopping(max_new_tokens=tokens, ignore_eos=True),
        )
    )
    console.print(f"[dim]a {tokens}-token answer of the poet runs beside all of this[/]\n")
    await refused(client, "nobody", "ADAPTER_NOT_FOUND")

    push = ("adapter-store", "push")
    other_card = scratch / "other-base.json"
    other_card.write_bytes(replace(card, fingerprint="0" * 64, name="another base").encode())
    trained_for_another = (str(PERSONAS / "chef" / "v1"), "--base-card", str(other_card))
    await asyncio.to_thread(shell.run, *push, *trained_for_another, "--name", "stranger")
    await refused(client, "stranger", "ADAPTER_INCOMPATIBLE")

    corrupt = scratch / "corrupt"
    shutil.copytree(PERSONAS / "chef" / "v1", corrupt)
    weights = corrupt / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    our_card = scratch / "base.json"
    our_card.write_bytes(card.encode())
    to_chef = ("--name", "chef", "--base-card", str(our_card))
    await asyncio.to_thread(shell.run, *push, str(corrupt), *to_chef, ok=(5,))
    console.print("  [green]✓[/] a corrupted safetensors file is refused at the door\n")

    pickled = scratch / "pickled"
    shutil.copytree(PERSONAS / "chef" / "v1", pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    await asyncio.to_thread(shell.run, *push, str(pickled), *to_chef, ok=(5,))
    console.print("  [green]✓[/] a pickle file is refused, whatever is in it\n")

    answer = await beside
    expect(
        answer.usage.completion_tokens == tokens and answer.served.adapter == "poet",
        f"the poet's {tokens} tokens all came, undisturbed",
    )


async def refused(client: AsyncClient, adapter: str, reason: str) -> None:
    try:
        await client.generate([Message("user", QUESTION)], adapter=adapter)
    except NodeError as error:
        console.print(f"  [red]{error.reason}[/] {error}")
        if error.hint:
            console.print(f"  [dim]what to do: {error.hint}[/]")
        expect(error.reason == reason, f"{adapter!r} is refused with {reason}")
        console.print()
    else:
        raise DemoFailed(f"{adapter!r} was answered")


async def tour(stack: EmbeddedStack, shell: Shell, address: str, scratch: Path) -> None:
    client = AsyncClient(address)
    try:
        step(1, "The stack")
        info = await wait_ready(client, stack)
        saved = 100 * (1 - info.base_bytes / info.base_bytes_bf16)
        console.print(f"  store    {stack.endpoints.s3_endpoint}  (SeaweedFS)")
        console.print("  locks    Valkey on loopback")
        console.print(f"  node     {address}  (gRPC)")
        console.print(f"  device   {info.device}: {info.kernel}")
        console.print(
            f"  base     {info.name}: {info.base_bytes / 2**20:.0f} MiB in 4-bit beside "
            f"{info.base_bytes_bf16 / 2**20:.0f} MiB in bf16 ({saved:.0f} % less)"
        )
        console.print(
            f"  pool     {info.pool.pages_total} pages of 8 ranks in {len(info.groups)} module "
            f"groups, {info.pool.pages_free} free"
        )

        step(2, "Three personas are published")
        for name in ("pirate", "poet", "chef"):
            shell.publish(PERSONAS / name / "v1", name, "v1")

        step(3, "One prompt, four voices, one batch")
        await four_at_once(client)

        step(4, "Version 2 is published in the middle of a stream")
        await swap_mid_stream(client, shell)

        step(5, "Rollback")
        await roll_back(client, shell)

        step(6, "Refusals, while others are served")
        await refuse(client, shell, scratch, base_card(stack))
    finally:
        await client.close()


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorapool-demo-") as folder:
        scratch = Path(folder)
        try:
            with running_stack(scratch / "state") as (stack, shell, address):
                asyncio.run(tour(stack, shell, address, scratch))
        except DemoFailed as failure:
            console.print(f"\n[bold red]demo: failed[/] {failure}")
            return 1
    console.print(f"\n[dim]{time.monotonic() - began:.0f} s, everything stopped[/]")
    console.print("[bold green]demo: ok[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
