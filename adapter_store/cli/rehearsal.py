"""`--dry-run`: the real protocol on a store whose writes stay in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapter_store.cli.console import out, say, size, tell
from adapter_store.cli.progress import Silence, Uploads
from adapter_store.cli.published import already
from adapter_store.memory import MemoryStore

if TYPE_CHECKING:
    from adapter_store.commit import Published, Publisher
    from adapter_store.objects import ListPage, ObjectHead, ObjectStore
    from adapter_store.upload import UploadProgress
    from adapter_store.validate import LocalAdapter


@dataclass(frozen=True, slots=True)
class RehearsalStore:
    """Reads from `real`; what is written can be read back here, and goes nowhere else.

    Listings show the real store alone: a publish never lists what it wrote itself.
    """

    real: ObjectStore
    written: MemoryStore = field(default_factory=MemoryStore)

    def get(self, key: str) -> bytes:
        return self._holder(key).get(key)

    def put_new(self, key: str, body: bytes) -> None:
        self.written.put_new(key, body)

    def head(self, key: str) -> ObjectHead:
        return self._holder(key).head(key)

    def list(
        self, prefix: str, *, delimiter: str = "", limit: int = 1000, token: str | None = None
    ) -> ListPage:
        return self.real.list(prefix, delimiter=delimiter, limit=limit, token=token)

    def delete(self, key: str) -> None:
        self.written.delete(key)

    def _holder(self, key: str) -> ObjectStore:
        return self.written if self.written.list(key, limit=1).keys == (key,) else self.real


def rehearsing(store: ObjectStore, *, warn: Callable[[str], None]) -> Publisher:
    """A publisher that says what would become of a change, conflicts included, and writes nothing.

    It takes no lock and tells no node.
    """
    from adapter_store.commit import Publisher
    from adapter_store.coordination import NoLock

    def without_lock(message: str) -> None:
        if NoLock().reason not in message:
            warn(message)

    return Publisher(RehearsalStore(store), actor="rehearsal", warn=without_lock)


def rehearse(
    store: ObjectStore,
    local: LocalAdapter,
    *,
    command: str,
    change: Callable[[Publisher, UploadProgress], Published],
    as_json: bool,
) -> None:
    """Run the `change` of `command` without a trace, and say what it would do.

    Raises what it would raise.
    """
    from adapter_store.upload import cut

    uploads = Uploads(cut(local.files), Silence())
    done = change(rehearsing(store, warn=lambda text: say(f"warning: {text}")), uploads)
    total = sum(map(len, local.files.values()))
    if as_json:
        out(
            {
                "dry_run": True,
                "tenant": done.tenant,
                "adapter": done.adapter,
                "version": done.label,
                "digest": done.vdig,
                "base": local.base,
                "rank": local.spec.rank,
                "target_modules": list(local.spec.target_modules),
                "current_generation": done.gen if done.unchanged else done.gen - 1,
                "generation": done.gen,
                "unchanged": done.unchanged,
                "bytes": total,
                "bytes_to_send": done.bytes_sent,
                "files": [
                    {"name": f["name"], "size": f["size"], "bytes_to_send": f["bytes_sent"]}
                    for f in uploads.documents()
                ],
            }
        )
        return
    if done.unchanged:
        tell(
            f"{done.adapter}@{done.label}  generation {done.gen}  sha256:{done.vdig[:12]}  "
            f"{already(command)}: a {command} would change nothing"
        )
        return
    tell(
        f"fit to {command} as {done.adapter}@{done.label}  generation {done.gen}  "
        f"sha256:{done.vdig[:12]}  rank {local.spec.rank} on {', '.join(local.spec.target_modules)}"
    )
    for file in uploads.documents():
        verb = "send" if file["bytes_sent"] else "exists"
        tell(f"{verb:6}  {file['name']}  {size(int(file['size']))}")
    tell(f"a {command} would send {size(done.bytes_sent)} of {size(total)}; nothing was written")
