"""A node with a trust file beside somebody who can write to the bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapter_store.commit import Publisher
from adapter_store.draft import Author
from adapter_store.errors import Untrusted
from adapter_store.layout import DEFAULT_TENANT
from adapter_store.provenance import KeySigner, TrustFile, trust_entry
from adapter_store.reader import Reader
from adapter_store.reclaim import reclaim
from adapter_store.s3 import S3Store
from adapter_store.validate import read_adapter_dir
from inference_node.config import EngineConfig
from inference_node.errors import AdapterNotFound, AdapterUntrusted, StaleNode
from tests.adapter_store.signed import signer
from tests.adapter_store.waiting import wait_until
from tests.inference_node.harness import Node, start_node
from tests.inference_node.tiny import make_adapter


@dataclass
class Site:
    """A real store, a trust file that names alice, and a node that has it or not."""

    store: S3Store
    trust_path: Path
    folder: Path
    node: Node
    alarms: list[Untrusted]

    @property
    def trust(self) -> TrustFile:
        return TrustFile(self.trust_path, warn=pytest.fail)

    def publish(self, seed: int, key: KeySigner | None) -> int:
        """Content of its own by whoever holds `key`, who looks at no trust file."""
        folder = self.folder / f"voice{seed}"
        if not folder.exists():
            make_adapter(folder, dict(self.node.card.modules), rank=8 + seed, seed=seed)
        local = read_adapter_dir(folder, card=self.node.card)
        publisher = Publisher(self.store, signer=key, actor="test", warn=lambda text: None)
        return publisher.publish(DEFAULT_TENANT, "a", local).gen

    def served(self, *, at_least: int = 0) -> int:
        return self.node.ask("a", min_generation=at_least).completed.served.generation


StartSite = Callable[..., Site]


@pytest.fixture
def start_site(tiny_config: EngineConfig, s3_store: S3Store, tmp_path: Path) -> Iterator[StartSite]:
    with ExitStack() as running:

        def start(*, trusting: bool = True, **changes: object) -> Site:
            path = tmp_path / "trust.toml"
            path.write_text(trust_entry(signer(), name="alice", tenant=DEFAULT_TENANT))
            alarms: list[Untrusted] = []
            verifier = TrustFile(path, warn=pytest.fail) if trusting else None
            reader = Reader(s3_store, verifier=verifier, on_refused=alarms.append)
            config = replace(tiny_config, **{"max_staleness": 0.0, **changes})  # type: ignore[arg-type]
            node = start_node(config, s3_store, reader=reader)
            running.callback(node.close)
            return Site(s3_store, path, tmp_path, node, alarms)

        yield start


def test_a_node_keeps_the_last_trusted_version_and_takes_the_next_one(
    start_site: StartSite,
) -> None:
    site = start_site()
    site.publish(1, signer())
    honest = site.node.ask("a").tokens
    site.publish(2, None)
    site.publish(3, signer("mallory"))
    for _ in range(3):
        answer = site.node.ask("a").wait()
        assert (answer.completed.served.generation, answer.token_ids) == (1, honest)
    assert len(site.alarms) == 2
    assert isinstance(site.node.ask("a", min_generation=2).error, StaleNode)
    taken_back = reclaim(
        site.store,
        tenant=DEFAULT_TENANT,
        adapter="a",
        signer=signer(),
        verifier=site.trust,
        author=lambda: Author("a" * 32, 1, "alice", ""),
        clock=time.monotonic,
        sleep=time.sleep,
    )
    assert taken_back is not None
    assert (site.served(), taken_back.gen) == (4, 4)
    assert site.node.ask("a").tokens == honest
    assert site.publish(4, signer()) == 5
    assert site.served(at_least=5) == 5
    assert site.node.ask("a").tokens != honest
    assert len(site.alarms) == 2
    site.node.settle()


def test_the_control_a_node_without_a_trust_file_serves_the_attacker(
    start_site: StartSite,
) -> None:
    site = start_site(trusting=False)
    site.publish(1, signer())
    honest = site.node.ask("a").tokens
    site.publish(2, None)
    assert site.served(at_least=2) == 2
    assert site.node.ask("a").tokens != honest


def test_a_node_that_starts_under_attack_serves_what_the_others_serve(
    start_site: StartSite,
) -> None:
    site = start_site()
    site.publish(1, signer())
    site.publish(2, None)
    assert site.served() == 1


def test_an_adapter_of_which_nothing_is_trusted_is_an_error_of_its_own(
    start_site: StartSite,
) -> None:
    site = start_site()
    site.publish(1, None)
    for name in ("a", "a@v1"):
        assert isinstance(site.node.ask(name).error, AdapterUntrusted)


def test_a_revoked_key_takes_its_versions_out_of_service_without_a_restart(
    start_site: StartSite,
) -> None:
    site = start_site(max_staleness=60.0, poll_seconds_without_hints=0.1)
    both = (
        site.trust_path.read_text()
        + "\n"
        + trust_entry(signer("bob"), name="bob", tenant=DEFAULT_TENANT)
    )
    site.trust_path.write_text(both)
    site.publish(1, signer())
    site.publish(2, signer("bob"))
    assert site.served() == 2
    running = site.node.ask("a", tokens=160).wait(tokens=1)
    site.trust_path.write_text(f"{both}\nrevoked = true")
    wait_until(lambda: site.served() == 1)
    assert running.completed.served.generation == 2
    assert isinstance(site.node.ask("a@v2").error, AdapterNotFound)
    site.trust_path.write_text(both)
    wait_until(lambda: site.served() == 2)
    site.node.settle()
