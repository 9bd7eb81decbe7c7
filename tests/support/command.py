# SPDX-License-Identifier: Apache-2.0
"""The command `nightlab`, run in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from nightlab_cli.main import app, load_command


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


def nightlab(*words: object) -> Result:
    """Run `nightlab WORDS...` and return its result. An exception that the command should have reported is raised."""
    done: Any = CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(word) for word in words], prog_name="nightlab")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Result(done.exit_code, done.stdout, done.stderr)


def parse(words: list[str]) -> None:
    """Parse a command line without running it. Raises the error that a user would see."""
    with load_command(words[0]).make_context(words[0], list(words[1:])):
        pass
