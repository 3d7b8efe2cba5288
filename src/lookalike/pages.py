"""What commands print, beside the line that each step ends with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from lookalike.terminal import Terminal

if TYPE_CHECKING:
    from lookalike.config.manual import Key
    from lookalike.steps.clean import Cleaned
    from lookalike.steps.query import Answered
    from lookalike.steps.releases import Releases

_SHOWN = (
    ("P@1", "A", "p_at_1"),
    ("P@10", "A", "p_at_10"),
    ("kNN accuracy (10)", "A", "knn_accuracy"),
    ("MAP@10", "A", "map_at_10"),
    ("MAP@R", "A", "map_at_r"),
    ("P@1", "B", "p_at_1"),
    ("MAP@R", "B", "map_at_r"),
    ("P@1", "U", "p_at_1"),
    ("MAP@R", "U", "map_at_r"),
)
_MEASURED = {"raw_pixels": "raw pixels", "encoder": "lookalike", "index": "lookalike's index"}


def closing(terminal: Terminal, content: dict[str, Any], where: str, recipe: str) -> None:
    """What `run` ends with: figures, places, and what to type next.

    Args:
        terminal: to print to.
        content: of the report.
        where: it is.
        recipe: as the command line names it.
    """
    evaluated = content["steps"]["evaluate"]
    figures = evaluated["figures"]
    found = {what for measured in figures.values() for what in measured} | {"index"}
    columns = [what for what in _MEASURED if what in found]
    rows = [
        (
            f"{name}, protocol {protocol}",
            *(
                f"{figures[protocol][what][metric]:.3f}" if what in figures[protocol] else ""
                for what in columns
            ),
        )
        for name, protocol, metric in _SHOWN
        if protocol in figures
    ]
    blank = [""] * (len(columns) - 1)
    rows.append(("recall@10 of the index", *blank, f"{evaluated['index_recall']:.3f}"))
    terminal.table("Test items", ("figure", *(_MEASURED[what] for what in columns)), rows)
    for protocol in figures:
        terminal.out.print(f"[dim]{protocol}: {content['protocols'][protocol]}[/dim]")
    terminal.out.print()
    if evaluated["picture"] is not None:
        terminal.out.print(f"Queries with their neighbours: {escape(evaluated['picture'])}")
    terminal.out.print(f"All figures: {escape(where)}")
    terminal.out.print(f"MLflow run: {evaluated['run_id']}")
    if "query" in content["steps"]:
        sample = next(iter(content["steps"]["query"]["answers"]))
        terminal.out.print("\nNext:")
        for words in (f"query {recipe} {shlex.quote(sample)}", f"serve {recipe}"):
            terminal.out.print(escape(f"  {program()} {words}"))


def plan(terminal: Terminal, plan: Cleaned) -> None:
    """What `clean` would remove, and what stays."""
    for title, listed, heads in (
        ("To be removed", plan.planned, ("what", "bytes", "age")),
        ("To stay", plan.kept, ("what", "bytes", "age", "why")),
    ):
        rows = [
            (
                f"{one.kind} {one.name[:12] if one.kind == 'embeddings' else one.name}",
                f"{one.size:,}",
                _age(one.at),
                "; ".join(one.reasons[:2]) + (" ..." if one.reasons[2:] else ""),
            )
            for one in listed
        ]
        rows.append((f"{len(listed)} in all", f"{sum(one.size for one in listed):,}", "", ""))
        terminal.table(title, heads, [row[: len(heads)] for row in rows])
    hours = plan.retained_hours
    least = min(hours.values())
    longer = "".join(
        f"; {table}: {n:,} h, for a version in use" for table, n in hours.items() if n > least
    )
    terminal.out.print(f"Files that tables deleted go in a vacuum after {least:,} h{longer}")


def _age(at: datetime) -> str:
    hours = (datetime.now(UTC) - at).total_seconds() / 3600
    return f"{hours / 24:,.0f} d" if hours >= 48 else f"{hours:.1f} h"


def releases(terminal: Terminal, result: Releases) -> None:
    """The versions that passed the gate, a row each."""
    rows = [
        (
            str(one.number),
            ", ".join(one.aliases) if one.registered else "removed",
            one.encoder[:12],
            one.index,
            "\n".join(f"{name} {value:.4f}" for name, value in one.figures.items()),
        )
        for one in result.releases
    ]
    terminal.table(result.name, ("", "alias", "encoder", "index", "figures"), rows)


def answers(terminal: Terminal, result: Answered) -> None:
    """A table of similar items for each query."""
    for name, found in result.answers.items():
        rows = [
            (
                str(f.rank),
                f.item_id,
                f.label or "",
                f"{f.distance:.4f}",
                "" if f.similarity is None else f"{f.similarity:.2f}",
            )
            for f in found
        ]
        terminal.table(name, ("rank", "item_id", "label", "distance", "similarity"), rows)


def keys(terminal: Terminal, found: Sequence[Key]) -> None:
    """A recipe's keys with their defaults, and what they may be."""
    for key in found:
        line = f"{key.name}: {key.default or ''}".rstrip()
        allowed = key.allowed + (", required" if key.default is None else "")
        notes = "; ".join(filter(None, (allowed, key.about, ", ".join(key.only))))
        terminal.out.print(f"{escape(line)}  [dim]# {escape(notes)}[/dim]")


def program() -> str:
    """This program, as one types it here."""
    own = Path(sys.argv[0])
    try:
        return str(own.absolute().relative_to(Path.cwd()))
    except ValueError:
        return own.name
