# SPDX-License-Identifier: Apache-2.0
"""The command line that all training stages share: `python -m training.STAGE RECIPE --data DATA --out OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nightlab_core.config import Settings, load_yaml
from training.checkpoint import is_finished

R = TypeVar("R", bound=Settings)


def run_stage(
    description: str | None,
    recipe_class: type[R],
    train: Callable[[R, Path, Path], None],
    result: str = "checkpoint.pt",
) -> None:
    """Parse the command line and run `train(recipe, data, out)`; where `out` holds a finished run and `result`, the
    last file that the stage writes, say so instead."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/train")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; an unfinished run goes on")
    arguments = parser.parse_args()
    with errors_in_words():
        recipe = load_yaml(arguments.recipe, recipe_class)
        if is_finished(arguments.out / "checkpoint.pt", recipe) and (arguments.out / result).is_file():
            print(f"{arguments.out / result} is finished; remove {arguments.out} to train again")
            return
        train(recipe, arguments.data, arguments.out)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Turn the errors that a user can mend to one line on stderr and exit status 1 (130 for Ctrl-C).

    `python -X dev` shows the traceback too.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, KeyError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(1)
