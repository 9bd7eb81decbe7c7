# SPDX-License-Identifier: Apache-2.0
"""The command line that all training stages share: `python -m training.STAGE RECIPE --data DATA --out OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nightlab_core.config import Settings
from training.checkpoint import check_made_from, is_finished, read
from training.recipes import load_recipe

R = TypeVar("R", bound=Settings)


def run_stage(
    description: str | None,
    recipe_class: type[R],
    train: Callable[[R, Path, Path], None],
    result: str = "checkpoint.pt",
    made_from: Callable[[R], Mapping[str, str]] = lambda recipe: {},
) -> None:
    """Parse the command line and run `train(recipe, data, out)`; where `out` holds a finished run and `result`, the
    last file that the stage writes, say so instead. A finished run of other files than `made_from` (see `loop.fit`)
    is an error."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML recipe, see config/train")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; an unfinished run goes on")
    arguments = parser.parse_args()
    with exit_on_error(resumes=True):
        recipe = load_recipe(arguments.recipe, recipe_class)
        checkpoint = arguments.out / "checkpoint.pt"
        if is_finished(checkpoint, recipe) and (arguments.out / result).is_file():
            check_made_from(checkpoint, read(checkpoint), made_from(recipe))
            print(f"{arguments.out / result} is finished; remove {arguments.out} to train again")
            return
        train(recipe, arguments.data, arguments.out)


@contextmanager
def exit_on_error(resumes: bool = False) -> Iterator[None]:
    """Turn the errors that a user can mend to one line on stderr and exit status 1 (130 for Ctrl-C).

    resumes: whether the command, given again, goes on where it was. `python -X dev` shows the traceback too.
    """
    try:
        yield
    except KeyboardInterrupt:
        how = "goes on from the last checkpoint" if resumes else "begins anew"
        print(f"stopped; the same command {how}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError, KeyError) as error:
        if sys.flags.dev_mode:
            raise
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(1)
