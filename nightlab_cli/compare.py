# SPDX-License-Identifier: Apache-2.0
"""`nightlab compare`: compare two replays."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from nightlab_cli.errors import CommandError, Verbose
from nightlab_cli.options import hold_output, new_console
from nightlab_cli.style import new_app
from nightlab_replay.pairing import CompareError
from nightlab_replay.report.compare import PAGE, write_comparison
from nightlab_replay.store import StoreError

app = new_app()

#: Exit statuses beside 0, for scripts: a gate failed, and the runs cannot be compared.
GATE_FAILED, NOT_COMPARED = 1, 2


def _percent(value: float | None) -> float | None:
    if value is not None and not 1 < value <= 100:
        raise typer.BadParameter(f"received {value:g}, expected percent, above 1 and up to 100, such as 45.5")
    return value


@app.command()
def compare(
    context: typer.Context,
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of a replay: the previous bundle.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of a replay: the new bundle.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the comparison.", show_default="B"),
    ] = None,
    fail_below: Annotated[
        float | None,
        typer.Option("--fail-below", metavar="MIOU", callback=_percent, help="Fail if B's mIoU is below, in percent."),
    ] = None,
    no_worse_than: Annotated[
        float | None,
        typer.Option(
            "--no-worse-than",
            metavar="POINTS",
            min=0,
            max=100,
            help="Fail unless the 95 % interval shows that B loses at most so many points of mIoU, "
            "or if a light level is shown to lose more.",
        ),
    ] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Do not open the bags for pictures.")] = False,
    verbose: Verbose = False,
) -> None:
    """Compare two replays of the same bags, frame by frame, and decide whether the new bundle is better.

    Writes compare.json and compare.html, and prints the verdict. Exit status: 0 if every gate passed or none was
    given, 1 if a gate failed, 2 if the replays cannot be compared.

    Example:

    \b
    nightlab replay night_drive --bundle old --out a
    nightlab replay night_drive --bundle new --out b
    nightlab compare a b --fail-below 45 --no-worse-than 0.5
    """
    console = new_console()
    try:
        if out is not None and out not in (first, second):
            hold_output(context, out)
        comparison = write_comparison(
            first,
            second,
            out or second,
            fail_below=fail_below,
            no_worse_than=no_worse_than,
            pictures=not no_pictures,
        )
    except (CompareError, StoreError, OSError) as error:
        raise CommandError(str(error), NOT_COMPARED) from error
    console.print(f"A: {escape(comparison.first.bundle)} ({first})   B: {escape(comparison.second.bundle)} ({second})")
    for sentence in comparison.sentences:
        console.print(escape(sentence), soft_wrap=True)
    for gate in comparison.gates:
        mark = "[green]passed[/]" if gate.passed else "[red]failed[/]"
        console.print(f"{mark} {gate.name}: {escape(gate.reason)}", soft_wrap=True)
    console.print(f"Comparison: {((out or second) / PAGE).resolve()}", soft_wrap=True)
    if not comparison.passed:
        raise typer.Exit(GATE_FAILED)
