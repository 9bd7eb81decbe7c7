# SPDX-License-Identifier: Apache-2.0
"""The command line that all training stages share: `python -m training.stages.NAME RECIPE --data DATA --out OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from nightlab_core.config import Settings
from nightlab_core.runtime.bundle import BundleError
from nightlab_core.runtime.engines.engine import EngineUnavailable
from nightlab_core.runtime.outputs import EngineError
from training.checkpoint import check_made_from, is_finished, read
from training.recipes import load_recipe

R = TypeVar("R", bound=Settings)
#: Errors that a user can correct.
_EXPECTED = (
    ValueError, OSError, FloatingPointError, ModuleNotFoundError, KeyError, BundleError, EngineError, EngineUnavailable,
)  # fmt: skip


@dataclass(frozen=True)
class TrainingStage(Generic[R]):
    """A stage that trains by a recipe and can be stopped and continued."""

    recipe_class: type[R]
    train: Callable[[R, Path, Path], None]  #: of recipe, data folder and output folder
    result: str = "checkpoint.pt"  #: the last file that the stage writes in its output folder
    made_from: Callable[[R], Mapping[str, str]] = lambda recipe: {}  #: SHA-256 of the files it learns from, by key

    def run(self, recipe_path: Path, data: Path, out: Path) -> None:
        """Train by a recipe, or continue an unfinished run in `out`; do nothing if the run in `out` is finished.

        Raises ValueError if `out` holds a run of another recipe, or one that learned from other files.
        """
        recipe = load_recipe(recipe_path, self.recipe_class)
        checkpoint = out / "checkpoint.pt"
        if is_finished(checkpoint, recipe) and (out / self.result).is_file():
            check_made_from(checkpoint, read(checkpoint), self.made_from(recipe))
            print(f"{out / self.result} is finished; remove {out} to train again")
            return
        self.train(recipe, data, out)

    def main(self, description: str | None) -> None:
        """Parse the command line, and run the stage."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("recipe", type=Path, help="YAML recipe, see config/train")
        parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
        parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint; continues a stopped run")
        arguments = parser.parse_args()
        with exit_on_error(resumes=True):
            self.run(arguments.recipe, arguments.data, arguments.out)


@contextmanager
def exit_on_error(resumes: bool = False) -> Iterator[None]:
    """Turn an error that a user can fix into one line on stderr and exit status 1 (130 for Ctrl-C).

    resumes: the command continues where it was stopped. `python -X dev` shows the traceback too.
    """
    try:
        yield
    except KeyboardInterrupt:
        how = "continues from the last checkpoint" if resumes else "starts from the beginning"
        print(f"stopped; the same command {how}", file=sys.stderr)
        sys.exit(130)
    except _EXPECTED as error:
        if sys.flags.dev_mode:
            raise
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(1)
