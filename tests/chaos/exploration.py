"""Every state of a world of the model, breadth first: the first way to one is a shortest."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.protocol_model import Move, State, World, broken_promise


@dataclass(frozen=True, slots=True)
class Explored:
    """How much there is, and a shortest way to a broken promise if there is one."""

    states: int
    broken: str = ""
    trace: tuple[str, ...] = ()


def explore(world: World, *, limit: int = 5_000_000) -> Explored:
    """Every state that can be reached, or as far as the first broken promise.

    Raises OverflowError past `limit` states: what is not exhausted proves nothing.
    """
    start = world.start()
    came_from: dict[State, Move | None] = {start: None}
    frontier = [start]
    while frontier:
        reached: list[State] = []
        for state in frontier:
            for move in world.moves(state):
                if move.state in came_from:
                    continue
                came_from[move.state] = Move(move.what, state)
                broken = broken_promise(move.state)
                if broken:
                    return Explored(len(came_from), broken, _trace(came_from, move.state))
                reached.append(move.state)
        if len(came_from) > limit:
            raise OverflowError(f"{len(came_from):,} states and no end")
        frontier = reached
    return Explored(len(came_from))


def _trace(came_from: dict[State, Move | None], state: State) -> tuple[str, ...]:
    steps = []
    while (move := came_from[state]) is not None:
        steps.append(move.what)
        state = move.state
    return tuple(reversed(steps))
