"""What a person at a terminal sees: progress, results, errors; all else goes to a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from lookalike.errors import GateError, LookalikeError, scrubbed


class Terminal:
    """Two consoles that stay with the person while file descriptors 1 and 2 go to a log.

    Java, TensorFlow and MLflow print what nobody asked for, from other processes too: so the
    descriptors are turned, not Python's streams.
    """

    def __init__(self) -> None:
        self.out = Console(file=os.fdopen(os.dup(1), "w"), highlight=False, soft_wrap=True)
        self.err = Console(file=os.fdopen(os.dup(2), "w"), highlight=False)
        self.log: Path | None = None

    @contextmanager
    def quiet(self, log: Path) -> Iterator[None]:
        """Turn what others print to a file."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        kept = os.dup(1), os.dup(2)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _turn(target, target)
            yield
        finally:
            _turn(*kept)
            for descriptor in (*kept, target):
                os.close(descriptor)

    @contextmanager
    def step(self, name: str, place: str) -> Iterator[Callable[..., None]]:
        """A progress bar for a step; yields what tells it of progress."""
        live = self.err.is_terminal  # in a log, a bar is but empty lines
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.err, transient=True, disable=not live) as progress:
            bar = progress.add_task(f"{place} {name}", total=None, count="")

            def tell(done: int, total: int, pace: str = "") -> None:
                count = f"{done:,}/{total:,} {pace}"
                progress.update(bar, completed=done, total=total, count=count)

            yield tell

    def say(self, words: str) -> None:
        """A sentence that stays above the progress bar."""
        self.err.print(f"  {escape(scrubbed(words))}", soft_wrap=True)

    def done(self, name: str, place: str, words: str, unchanged: bool, begin: float) -> None:
        seconds = time.monotonic() - begin
        mark = "[dim]=[/dim]" if unchanged else "[green]✓[/green]"
        self.err.print(
            f"{mark} {place} [bold]{name}[/bold] [dim]{seconds:.0f} s[/dim]  {escape(words)}",
            soft_wrap=True,
        )

    def table(
        self,
        title: str,
        heads: tuple[str, ...],
        rows: Sequence[tuple[str, ...]],
        on: Console | None = None,
    ) -> None:
        """Print a table; on what a command answers on, if nothing else is said."""
        table = Table(title=escape(title), title_justify="left", title_style="bold")
        for i, head in enumerate(heads):
            table.add_column(head, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        (on or self.out).print(table)

    def gate(self, rows: Sequence[tuple[str, ...]], on: Console | None = None) -> None:
        """Print what the release gate looked at."""
        self.table("The release gate", GateError.heads, rows, on)

    def error(self, error: BaseException) -> None:
        """Say what went wrong, without a traceback."""
        if isinstance(error, GateError):
            self.gate(error.rows, self.err)
        if isinstance(error, LookalikeError):
            kind, said = type(error).__name__, str(error)
        else:
            first = str(error).strip().splitlines()[:1]
            kind, said = type(error).__name__, first[0] if first else "no message"
            said += " (an error nobody foresaw: --debug shows where)"
        self.err.print(f"[red bold]{kind}[/red bold]: {escape(scrubbed(said))}", soft_wrap=True)
        if self.log is not None and self.log.exists() and not isinstance(error, LookalikeError):
            self.err.print(
                f"[dim]What its parts printed is in {escape(str(self.log))}[/dim]",
                soft_wrap=True,
            )


def _turn(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
