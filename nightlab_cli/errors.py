# SPDX-License-Identifier: Apache-2.0
"""The one place that turns an exception into a sentence on standard error and an exit status."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
import typer.exceptions

FAILED, INTERRUPTED = 1, 130
#: Errors that a user can correct, beside the project's own. Any other is a fault of NightLab, and its class is named.
EXPECTED = (OSError, ValueError, RuntimeError, ArithmeticError, ImportError, KeyError)
#: By sub-command, how to install the packages that it needs beyond the requirements of the vehicle.
INSTALL = {
    "demo": "source ROS 2, or install requirements/ros-kilted.txt",
    "replay": "in NightLab's repository: pip install '.[replay]'",
    "compare": "in NightLab's repository: pip install '.[replay]'",
    "bag": "in NightLab's repository: pip install '.[replay]'",
    "engine": "in NightLab's repository: pip install '.[tensorrt]'",
    "benchmark": "--node needs ROS 2 or requirements/ros-kilted.txt, --checkpoint needs requirements/train.txt",
    "export": "in NightLab's repository: pip install '.[train]'",
    "evaluate": "in NightLab's repository: pip install '.[train]', then python -m nightlab_cli evaluate",
}
_VERBOSE = "nightlab.verbose"


def _remember(context: typer.Context, given: bool) -> bool:
    context.meta[_VERBOSE] = given
    return given


#: Option of every command; `report_errors` reads it from the context.
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", callback=_remember, is_eager=True, help="Show the traceback of an error.")
]


class CommandError(Exception):
    """Sentence for the user, with the exit status of the command."""

    def __init__(self, sentence: str, status: int = FAILED) -> None:
        super().__init__(sentence)
        self.status = status


@contextmanager
def report_errors(context: Any, command: str | None = None) -> Iterator[None]:
    """Print an exception as one sentence on standard error and exit; with -v its traceback comes first.

    context: of the whole command line. command: the sub-command where the context does not know it yet.
    Exit statuses: 130 for Ctrl-C, that of a `CommandError`, else 1. Wrong usage is left to Typer, which exits with 2.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, typer.exceptions.TyperException):
        raise
    except KeyboardInterrupt:
        _exit(command or context.invoked_subcommand, "interrupted", INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # the reader of our output has gone, for example `head`
        if context.meta.get(_VERBOSE):
            traceback.print_exc()
        command = command or context.invoked_subcommand
        _exit(command, _sentence(error, command), error.status if isinstance(error, CommandError) else FAILED)


def _sentence(error: Exception, command: str | None) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the Python module {error.name} is missing; {INSTALL.get(command or '', 'install it')}"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if type(error).__module__.startswith("pydantic"):
        details = error.errors()  # type: ignore[attr-defined]
        inner = [d for d in details if not any(o["loc"][: len(d["loc"])] == d["loc"] != o["loc"] for o in details)]
        return "; ".join(
            f"{'.'.join(map(str, detail['loc'])) or 'value'}: received {detail['input']!r}, {detail['msg']}"
            for detail in inner
        )
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    own = type(error).__module__.startswith(("nightlab_", "training."))
    if text and (own or isinstance(error, EXPECTED)):
        return text
    return f"{type(error).__name__}: {text} (a fault of NightLab; the option -v shows where)"


def _exit(command: str | None, sentence: str, status: int) -> NoReturn:
    print(" ".join(filter(None, ("nightlab", command))) + f": {sentence}", file=sys.stderr)
    raise typer.Exit(status)
