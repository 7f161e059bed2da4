"""Where adapters attach to a decoder: the same groups of linears in every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from inference_node.kernels.lora.contract import GroupShape


@dataclass(frozen=True, slots=True)
class ModuleGroup:
    """Linears of one decoder layer that read the same tensor, in the order they run."""

    name: str
    tails: tuple[str, ...]
    """Module path after `layers.<n>`, such as `.self_attn.q_proj`."""
    shape: GroupShape


@dataclass(frozen=True, slots=True)
class ModuleMap:
    """Every linear an adapter may target."""

    head: str
    """Module path up to the layer number, such as `model.layers.`."""
    layers: int
    groups: tuple[ModuleGroup, ...]

    def path(self, layer: int, tail: str) -> str:
        return f"{self.head}{layer}{tail}"

    def sites(self) -> Iterator[tuple[str, int, int, int]]:
        """(full path, layer, group, part) of every linear."""
        for layer in range(self.layers):
            for group_index, group in enumerate(self.groups):
                for part, tail in enumerate(group.tails):
                    yield self.path(layer, tail), layer, group_index, part

    def by_linear(self, values: Mapping[str, float], *, default: float) -> tuple[float, ...]:
        """One value a group: that of its linear named in `values`, the largest of several.

        Raises KeyError with the names that no group has.
        """
        names = [[tail.rsplit(".", 1)[-1] for tail in group.tails] for group in self.groups]
        if unknown := sorted(set(values).difference(*names)):
            raise KeyError(", ".join(unknown))
        return tuple(
            max((values[name] for name in own if name in values), default=default) for own in names
        )

    def modules(self) -> dict[str, tuple[int, int]]:
        """Full path -> (out, in)."""
        return {
            path: (
                self.groups[group].shape.out_features[part],
                self.groups[group].shape.in_features,
            )
            for path, _, group, part in self.sites()
        }
