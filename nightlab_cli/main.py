# SPDX-License-Identifier: Apache-2.0
"""The table of sub-commands. A sub-command's module is imported when it runs, so that `nightlab --help` stays fast.

A sub-command is a module of this package with a Typer application `app`. To add one, write the module and one line
in `COMMANDS`.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer.core
import typer.main

from nightlab_cli.errors import report_errors
from nightlab_cli.signals import handled, interrupt
from nightlab_cli.style import new_app

#: Name of each sub-command, which is its module in this package, and its line in `nightlab --help`.
COMMANDS = {
    "demo": "Play a night clip or your own frames through the node; report.",
    "replay": "Run recorded bags through a bundle; report accuracy, latency.",
    "compare": "Compare two replays of the same bags, frame by frame.",
    "bag": "Make a labelled bag from images, a video or another bag.",
    "engine": "Build, list, verify and remove TensorRT plans.",
    "benchmark": "Measure the speed of a bundle on this machine.",
    "export": "Export a trained checkpoint to a bundle.",
    "evaluate": "Measure a bundle or a checkpoint on a labelled data set.",
}


class LazyCommands(typer.core.TyperGroup):
    """Group whose commands hold a name and a help line, and are replaced by the real ones when they run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command by its name and import it."""
        name, _, rest = super().resolve_command(ctx, args)
        if name is None:  # shell completion of a name that is not finished
            return None, None, rest
        with report_errors(ctx, name):
            return name, load_command(name), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print an error in one sentence."""
        with report_errors(ctx), handled(interrupt, signal.SIGTERM, signal.SIGHUP):
            return super().invoke(ctx)


def load_command(name: str) -> Any:
    """Import the module of a sub-command and return its Typer command."""
    return typer.main.get_command(importlib.import_module(f"nightlab_cli.{name}").app)


app = new_app(cls=LazyCommands, no_args_is_help=True, add_completion=True)


@app.callback()
def nightlab() -> None:
    """Segment night driving images at two levels: demo, replay, engines, export.

    Every command explains itself: nightlab COMMAND --help
    """


def _placeholder() -> Callable[[], None]:
    def command() -> None:
        """Stand in the list of commands for the real one, which `LazyCommands.resolve_command` returns."""

    return command


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_placeholder())


def main() -> None:
    """Run the command line and exit: status 0; 1 for an error, 2 for wrong usage, 130 when interrupted."""
    app(prog_name="nightlab")


def demo() -> None:
    """Run `nightlab demo`: the executable nightlab_demo of the ROS package."""
    app(["demo", *sys.argv[1:]], prog_name="nightlab")
