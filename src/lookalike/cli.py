"""The command line: one command a step, and `run` for all of them."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape

from lookalike import artifacts, config, pages
from lookalike.errors import ArtifactError, ConfigError, LookalikeError
from lookalike.steps import STEPS
from lookalike.steps.context import Context, Result
from lookalike.terminal import Terminal

if TYPE_CHECKING:
    from lookalike.steps.clean import Cleaned, Plan

R = TypeVar("R", bound=Result)

app = typer.Typer(
    name="lookalike",
    help="Items that look like this one: from a catalogue of images to an endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Conf = Annotated[Path, typer.Option("--conf", help="The recipe, e.g. conf/demo.yaml.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the recipe, e.g. train.epochs=3.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and what parts print.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Exits with 2 for usage and config, 3 for data, 4 where a gate refused, 1 for anything else;
    returns where all went well, for some job runners take any exit for a failure.
    """
    terminal = Terminal()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=arguments, prog_name="lookalike", obj=terminal)
        return
    except SystemExit as ended:
        code = ended.code
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        terminal.error(error)
        code = error.exit_code if isinstance(error, LookalikeError) else 1
    if code:
        raise SystemExit(code)


@contextmanager
def _opened(
    terminal: Terminal, name: str, conf: Path, settings: list[str] | None, debug: bool
) -> Iterator[Context]:
    recipe = config.load(conf, settings or ())
    context = Context(recipe, say=terminal.say)
    # On Databricks the driver's own log is where people look, and volumes cannot be appended to.
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        with context:
            yield context
        return
    if (folder := artifacts.local_path(context.files)) is not None:
        context.log = folder / "logs"
    if debug:
        with context:
            yield context
        return
    with terminal.quiet(context.log / f"{name}-{artifacts.new_name()}.log"), context:
        yield context


def _run_step(
    terminal: Terminal, context: Context, step: str, place: str, **options: Any
) -> Result:
    module = importlib.import_module(f"lookalike.steps.{step}")
    result: Result = _shown(terminal, context, step, place, lambda: module.run(context, **options))
    return result


def _shown(terminal: Terminal, context: Context, name: str, place: str, work: Callable[[], R]) -> R:
    """Do work while its progress is shown, then say its result in a line."""
    begin = time.monotonic()
    with terminal.step(name, place) as context.progress:
        result = work()
    terminal.done(name, place, result.words, result.unchanged, begin)
    return result


def _alone(
    called: typer.Context,
    name: str,
    conf: Path,
    settings: list[str] | None,
    debug: bool,
    as_json: bool,
    work: Callable[[Context], R],
) -> R:
    """Do one step's work, and print its result as JSON where that is asked for."""
    terminal: Terminal = called.obj
    with _opened(terminal, name, conf, settings, debug) as context:
        result = _shown(terminal, context, name, "", lambda: work(context))
    if as_json:
        terminal.out.print_json(result.model_dump_json())
    return result


def _command(step: str) -> None:
    module_help = {
        "duplicates": "Find duplicates, and decide which split each item is in.",
        "snapshot": "Decode a pinned version of the tables for training.",
        "train": "Train the encoder on several ranks.",
        "embed": "Give every item of the catalogue its vector.",
        "index": "Build the nearest-neighbour index.",
        "evaluate": "Measure encoder and index on the test split, beside raw pixels.",
    }

    @app.command(step, help=module_help[step])
    def command(
        called: typer.Context,
        conf: Conf,
        set_: Set = None,
        as_json: Json = False,
        debug: Debug = False,
    ) -> None:
        def work(context: Context) -> Result:
            result: Result = importlib.import_module(f"lookalike.steps.{step}").run(context)
            return result

        _alone(called, step, conf, set_, debug, as_json, work)


@app.command()
def ingest(
    called: typer.Context,
    conf: Conf,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete items that the source has no more.")
    ] = False,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Load the source into the tables."""
    from lookalike.steps import ingest as step

    _alone(called, step.STEP, conf, set_, debug, as_json, lambda c: step.run(c, prune=prune))


for _step in STEPS[1:3]:
    _command(_step)


@app.command()
def tune(
    called: typer.Context,
    conf: Conf,
    more: Annotated[
        int, typer.Option(min=0, help="Trials beyond those that the search has, or shall have.")
    ] = 0,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Begin anew where recipe or snapshot are not the search's."),
    ] = False,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search hyperparameters across the cluster's workers; a killed search goes on."""
    from lookalike.steps import tune as step

    def work(context: Context) -> Result:
        return step.run(context, more=more, fresh=fresh)

    _alone(called, step.STEP, conf, set_, debug, as_json, work)


for _step in STEPS[4:-2]:
    _command(_step)


@app.command()
def release(
    called: typer.Context,
    conf: Conf,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Make the model's environment from nothing and ask it one question, before it "
            "becomes the champion.",
        ),
    ] = False,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Release encoder and index as one model, if the gate lets them pass."""
    from lookalike.steps import release as step

    result = _alone(
        called, step.STEP, conf, set_, debug, as_json, lambda c: step.run(c, check=check)
    )
    checks = getattr(result, "checks", ())
    if checks and not as_json:
        called.obj.gate(checks)


@app.command()
def keys(
    called: typer.Context,
    key: Annotated[
        str, typer.Argument(help="One, e.g. train.loss, with those below it; else all.")
    ] = "",
) -> None:
    """Show the keys of a recipe, their defaults, and what they may be."""
    from lookalike.config import manual

    pages.keys(called.obj, manual.keys(key))


@app.command()
def releases(
    called: typer.Context,
    conf: Conf,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the versions that passed the gate, and which of them is the champion."""
    from lookalike.steps import releases as step

    result = _alone(called, "releases", conf, set_, debug, as_json, step.listed)
    if as_json:
        return
    pages.releases(called.obj, result)


@app.command()
def promote(
    called: typer.Context,
    conf: Conf,
    number: Annotated[int, typer.Argument(help="A version that passed the gate.")],
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a version that passed the gate the champion."""
    from lookalike.steps import releases as step

    _alone(called, "promote", conf, set_, debug, as_json, lambda c: step.promote(c, number))


@app.command()
def rollback(
    called: typer.Context,
    conf: Conf,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make the release before the champion the champion again."""
    from lookalike.steps import releases as step

    _alone(called, "rollback", conf, set_, debug, as_json, step.rollback)


@app.command()
def query(
    called: typer.Context,
    conf: Conf,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, or vectors (.npy, .json); none: the sample queries of the "
            "champion's evaluation."
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbours of each.")] = 10,
    url: Annotated[str | None, typer.Option(help="Ask this endpoint, not in process.")] = None,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Ask the champion what looks like an image, or is near a vector."""
    from lookalike.steps import query as step

    terminal: Terminal = called.obj
    with _opened(terminal, "query", conf, set_, debug) as context:
        result = step.run(context, files or (), k, url)
    if as_json:
        terminal.out.print_json(result.model_dump_json())
        return
    pages.answers(terminal, result)


@app.command()
def inspect(
    called: typer.Context,
    conf: Conf,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what the catalogue holds and how clean it is: labels, sizes, rejects, duplicates."""
    from lookalike.steps import inspect as step

    terminal: Terminal = called.obj
    result = _alone(called, step.STEP, conf, set_, debug, as_json, step.run)
    if as_json:
        return
    for title, heads, rows in step.shown(result):
        terminal.table(title, heads, rows)
    for what, uri in result.files.items():
        terminal.out.print(f"{what}: {escape(uri)}")


@app.command()
def clean(
    called: typer.Context,
    conf: Conf,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest of each kind stay.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove what newer versions have replaced and nothing live needs, and vacuum the tables."""
    from lookalike.steps import clean as step

    terminal: Terminal = called.obj
    with _opened(terminal, "clean", conf, set_, debug) as context:
        plan = step.plan(context, keep)
        result = plan.undone
        if not as_json:
            pages.plan(terminal, result)
        if yes:
            result = _cleaned(terminal, context, plan)
    if not yes and sys.stdin.isatty():
        # Asked out here, where the terminal's own streams are back; meanwhile things may change.
        typer.confirm(f"Remove these {len(result.planned)} and vacuum?", abort=True, err=True)
        with _opened(terminal, "clean", conf, set_, debug) as context:
            result = _cleaned(terminal, context, step.plan(context, keep).within(plan))
        yes = True
    if as_json:
        terminal.out.print_json(result.model_dump_json())
    if not yes:
        raise ConfigError(
            "nothing was removed: there is no terminal to ask at",
            remedy="Look at the list and give --yes",
        )


def _cleaned(terminal: Terminal, context: Context, plan: Plan) -> Cleaned:
    from lookalike.steps import clean as step

    return _shown(terminal, context, step.STEP, "", lambda: step.run(context, plan))


@app.command()
def check(
    called: typer.Context,
    conf: Conf,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read every artefact's files, and say which are not as they were committed."""
    from lookalike.steps import check as step

    result = _alone(called, step.STEP, conf, set_, debug, as_json, step.run)
    if not as_json and result.unfinished:
        called.obj.table("Without a manifest", ("folder",), [(uri,) for uri in result.unfinished])
    if result.damaged:
        raise ArtifactError("\n".join(result.damaged))


@app.command()
def serve(
    called: typer.Context,
    conf: Conf,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5001,
    set_: Set = None,
) -> None:
    """Serve the champion over REST, with MLflow's scoring server, until stopped."""
    from lookalike.steps import serve as step

    # The server's own output is what one wants to see.
    terminal: Terminal = called.obj
    with _opened(terminal, "serve", conf, set_, debug=True) as context:
        url = f"http://{host}:{port}"
        step.check(host, port)
        ask = f"Ask it: {pages.program()} query {_recipe(conf, set_)} --url {url}"
        terminal.err.print(f"{context.config.name} at {url}/invocations; Ctrl-C stops it")
        terminal.err.print(ask, soft_wrap=True)  # to be copied
        step.run(context, host, port)


@app.command()
def run(
    called: typer.Context,
    conf: Conf,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Do all steps, from the source's images to the champion's first answers."""
    from lookalike.steps import report

    terminal: Terminal = called.obj
    results: dict[str, Result] = {}
    with _opened(terminal, "run", conf, set_, debug) as context:
        refused: LookalikeError | None = None
        seconds: dict[str, float] = {}
        for number, step in enumerate(STEPS, start=1):
            started = time.monotonic()
            try:
                results[step] = _run_step(terminal, context, step, f"{number}/{len(STEPS)}")
            except LookalikeError as error:
                if step != "release":
                    raise
                refused = error  # the figures that it was refused for are worth keeping
                break
            seconds[step] = time.monotonic() - started
        content = _report(results, seconds)
        where = report.write_report(context.files, content)
    if as_json:
        terminal.out.print_json(json.dumps(content, default=str))
    else:
        pages.closing(terminal, content, where, _recipe(conf, set_))
    if refused is not None:
        raise refused


def _report(results: dict[str, Result], seconds: dict[str, float]) -> dict[str, Any]:
    from lookalike.steps.protocols import PROTOCOLS

    return {
        "protocols": PROTOCOLS,
        "steps": {step: result.model_dump() for step, result in results.items()},
        "seconds": sum(seconds.values()),
        "seconds_by_step": seconds,
    }


def _recipe(conf: Path, settings: list[str] | None) -> str:
    return shlex.join(["--conf", str(conf), *(w for s in settings or () for w in ("--set", s))])


if __name__ == "__main__":
    main()
