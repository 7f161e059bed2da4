"""Threads that take turns: exactly one runs, and it alone says who runs next.

The code under test is synchronous, so each call of it needs a stack of its own. A thread gives it
one; the baton makes the interleaving a choice of the simulation instead of the operating system.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

_STUCK_S = 60.0


class Died(BaseException):
    """The process this task belongs to is dead; unwind and touch nothing."""


class Stuck(Exception):
    """A task blocks on something that is not the baton."""


@dataclass(eq=False, slots=True)
class Process:
    """What dies together: tasks, their clock, their connection."""

    name: str
    dead: bool = False
    clock_offset: float = 0.0
    cut_off_until: int = 0
    """The step before which it cannot reach the store."""


@dataclass(eq=False, slots=True)
class Task:
    """One stack of one process."""

    name: str
    process: Process
    act: Callable[[], object]
    wake_at: float = 0.0
    stalled_until: int = 0
    """The step before which the scheduler leaves it alone."""
    started: bool = False
    gate: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.gate.acquire()


class Baton:
    """Who runs. `choose` is asked whenever a task ends; None hands back to the main thread."""

    def __init__(
        self,
        choose: Callable[[], Task | None],
        failed: Callable[[Task, Exception], None],
    ) -> None:
        self._choose = choose
        self._failed = failed
        self._gate = threading.Lock()
        self._gate.acquire()
        self.current: Task | None = None
        self.tasks: list[Task] = []

    def spawn(self, process: Process, name: str, act: Callable[[], object]) -> Task:
        task = Task(name, process, act)
        self.tasks.append(task)
        return task

    def pass_to(self, to: Task | None) -> None:
        """Let `to` run; returns when the baton comes back. Raises Died in a dead process."""
        me = self.current
        if to is not me:
            self._release(to)
            if me is not None:
                me.gate.acquire()
            elif not self._gate.acquire(timeout=_STUCK_S):
                raise Stuck(f"{to.name if to else 'main'} never gave the baton back")
        if me is not None and me.process.dead:
            raise Died

    def forget_unstarted(self, process: Process) -> None:
        """Tasks of a dead process that never ran need no unwinding."""
        self.tasks = [t for t in self.tasks if t.started or t.process is not process]

    def unwind(self) -> None:
        """Kill what still runs and wait until every stack is gone. Main thread only."""
        for task in list(self.tasks):
            task.process.dead = True
            if task.started:
                self.pass_to(task)
        self.tasks.clear()

    def _release(self, to: Task | None) -> None:
        self.current = to
        if to is None:
            self._gate.release()
        elif to.started:
            to.gate.release()
        else:
            to.started = True
            threading.Thread(target=self._run, args=(to,), name=to.name, daemon=True).start()

    def _run(self, task: Task) -> None:
        try:
            if not task.process.dead:
                task.act()
        except Died:
            pass
        except Exception as error:
            self._failed(task, error)
        self.tasks.remove(task)
        self._release(self._choose())
