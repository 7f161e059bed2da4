"""The proof suite: what the store and the node promise, tried until it would have broken.

    make chaos [SCALE=1.0] [ROWS=T4,T7] [SEED=0]      every row, two at a time, figures to a file
    pytest tests/chaos                                the same rows, seconds each

A row answers one question with a count of cases, of the faults it injected, of the promises that
were broken, and of controls: the same test with a seeded bug, which has to fail. A zero without
its control is not evidence, so a row with a missed control counts as failed.

To add a row: write `tests/chaos/<what it proves>.py` with

    def run(scale: float, seed: int, bench: Bench) -> Row: ...

and a line in `registry.py`. `scale` multiplies the number of cases (1.0 is the figure the row
stands for, the short form in the tests is `Entry.short`); `seed` is where its random choices
start, so that a printed command replays them; `bench` gives a folder and real services. A broken
promise is a sentence in `Row.violations`, never an exception: an exception is an error of the row.
The row is a process of its own under `make chaos` and may start others; what it starts it ends.
"""
