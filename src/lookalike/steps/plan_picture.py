"""A picture of what a planner tried: recall against queries a second, a line a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

PICTURE: Final = "plan.png"
_COLOURS: Final = {
    "exact": "#5b6675", "hnsw": "#2f6db5", "ivf_flat": "#2a9d5c", "ivf_sq8": "#d9772b",
    "ivf_pq": "#d64550", "kd_tree": "#8a5fb5",
}  # fmt: skip
_STYLES: Final = ("-", "--", ":")


def draw(plan: dict[str, Any], folder: Path) -> None:
    """Draw the content of plan.json into a folder; nothing where there was nothing to try.

    Args:
        plan: see `lookalike.index.planner.Choice.told`.
        folder: where plan.png goes.
    """
    from matplotlib.figure import Figure

    tried = [trial for trial in plan["trials"] if trial["points"]]
    if not tried:
        return
    figure = Figure(figsize=(8.4, 4.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    seen: dict[str, int] = {}
    for trial in tried:
        kind, chosen = trial["plan"]["kind"], trial["verdict"] == "chosen"
        style = _STYLES[seen.setdefault(kind, 0) % len(_STYLES)]
        seen[kind] += 1
        x, y = _curve(trial["points"])
        axes.plot(
            x, y, style, marker="o", markersize=3, color=_COLOURS[kind], label=_named(trial),
            linewidth=2.6 if chosen else 1.1,
        )  # fmt: skip
    if plan["built"]:
        x, y = _curve(plan["built"]["points"])
        axes.plot(x, y, "D-", markersize=4, color="#1d2733", label=f"built, {plan['count']:,}")
    wishes = plan["wishes"]
    axes.axvline(wishes["recall"], color="#1d2733", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel(f"recall at {wishes['k']}, of held-out vectors")
    axes.set_ylabel("queries a second, " + _timed(wishes["prefer"]))
    axes.set_title(f"Tried on {plan['sample']:,} of {plan['count']:,} vectors of {plan['dim']}")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(folder / PICTURE, facecolor="white", metadata={"Software": None})


def _curve(points: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [p["recall"] for p in points], [1 / max(p["seconds"], 1e-9) for p in points]


def _named(trial: dict[str, Any]) -> str:
    plan = trial["plan"]
    words = [plan["kind"]]
    if plan["kind"] == "hnsw":
        words.append(f"m {plan['m']}")
    if plan["kind"].startswith("ivf"):
        words.append(f"{plan['nlist']:,} cells")
    if plan["kind"] == "ivf_pq":
        words.append(f"{plan['pq_bytes']} bytes")
    if plan["kind"] in ("ivf_sq8", "ivf_pq"):
        words.append(f"re-ranked {plan['rerank']}k" if plan["rerank"] else "codes alone")
    return ", ".join(words) + (" (chosen)" if trial["verdict"] == "chosen" else "")


def _timed(prefer: str) -> str:
    return "one by one in one thread" if prefer == "latency" else "many at once"
