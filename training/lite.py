# SPDX-License-Identifier: Apache-2.0
"""Train the lite bundle: every stage in its order, from the shipped weights and the data to measured bundles.

python -m training.lite --data DATA
python -m training.lite --data DATA --from hdm --until bundle

Stopped at any point, the same command continues. A finished stage is skipped until one of its input files changes.
Run it in the repository's folder: the recipes in config/train name files under checkpoints/ and runs/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Literal

from nightlab_core.files import write_atomic
from nightlab_core.runtime.bundle import ENGINE_KINDS, default_bundle, sha256_of
from training.command import exit_on_error

RECIPES = Path("config/train")
RUNS = Path("runs")
VAL_SETS = ("camvid/val", "nightcoarse/val")  #: the sets that the figures in a bundle's manifest are measured on

#: Environment of a stage. On a CPU, the operating system can take half of a step's time to clear new memory for large
#: tensors. With these settings of glibc the allocator keeps its memory.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
}

Action = Literal["skip", "start", "continue", "restart"]


@dataclass(frozen=True)
class ChainStage:
    """One stage of the chain. Paths are relative to the working directory."""

    name: str
    run: Callable[[Path], None]  #: of the data folder
    outputs: tuple[Path, ...]  #: files and folders that exist when the stage is finished
    inputs: tuple[Path, ...] = ()  #: files of earlier stages; when one changes, the stage starts again
    continues: bool = True  #: can continue from its own unfinished outputs

    @property
    def record_path(self) -> Path:
        """The file that says which inputs the outputs were made from."""
        return RUNS / "lite_stages" / f"{self.name}.json"


@dataclass(frozen=True)
class StageRecord:
    """Stored state of a stage's last run."""

    inputs: Mapping[str, str]  #: SHA-256 by path, when the run started
    finished: bool


def next_action(
    record: StageRecord | None, inputs: Mapping[str, str], outputs_exist: Sequence[bool], continues: bool
) -> Action:
    """Decide what to do with a stage from the states of its files alone.

    Args:
        record: of the last run, None if there was none.
        inputs: SHA-256 of the input files now, by path.
        outputs_exist: for each output, whether it exists.
        continues: whether the stage can continue from unfinished outputs.

    Returns "restart" where the old outputs must be removed first.
    """
    if record is None and not any(outputs_exist):
        return "start"
    if record is not None and record.inputs != inputs:
        return "restart"
    if record is not None and record.finished and all(outputs_exist):
        return "skip"
    return "continue" if continues else "restart"


def chain() -> tuple[ChainStage, ...]:
    """All stages in their order. `hard_classes` and those after it do not contribute to the bundle that ships."""
    image, region, detector = (RUNS / f"lite_{name}" / "checkpoint.pt" for name in ("image", "region", "detector"))
    rdn_bundle, hdm, whole = RUNS / "lite_rdn_bundle", RUNS / "lite_hdm_helps" / "checkpoint.pt", RUNS / "nightlab-lite"
    networks = tuple(rdn_bundle / f"{kind}.onnx" for kind in ENGINE_KINDS)
    joint = RUNS / "lite_joint" / "nightlab.pt"
    return (
        ChainStage("night_labels", _label_night_frames, (RUNS / "pseudo_night",), continues=False),
        _trained("image", "segmenter", "lite_image", image),
        _trained("region", "segmenter", "lite_region", region),
        _trained("detector", "detector", "lite_detector", detector),
        _measured_bundle("rdn_bundle", "lite_bundle", rdn_bundle, (image, region, detector)),
        _trained("hdm", "hdm", "lite_hdm_helps", hdm, (*networks, detector), (RUNS / "lite_proposals.npz",)),
        _measured_bundle("bundle", "lite_hdm_bundle", whole, (image, region, hdm)),
        ChainStage("hard_classes", _find_hard_classes, (RUNS / "hard_classes.yaml",), (image,), continues=False),
        _trained("relam_image", "relam", "relam_image", RUNS / "relam_image" / "checkpoint.pt"),
        _trained("relam_region", "relam", "relam_region", RUNS / "relam_region" / "checkpoint.pt"),
        _trained("joint", "joint", "lite_joint", joint, (whole.with_suffix(".pt"),)),
        ChainStage(
            "joint_bundle",
            lambda data: _export_and_measure(joint, RUNS / "nightlab-lite-joint", data),
            (RUNS / "nightlab-lite-joint",),
            (joint,),
            continues=False,
        ),
    )


def _trained(
    name: str,
    module: str,
    recipe: str,
    result: Path,
    inputs: tuple[Path, ...] = (),
    beside: tuple[Path, ...] = (),
) -> ChainStage:
    """A stage of `training.stages` that writes `result`, and `beside` outside the folder of `result`."""

    def run(data: Path) -> None:
        import_module(f"training.stages.{module}").STAGE.run(RECIPES / f"{recipe}.yaml", data, result.parent)

    return ChainStage(name, run, (result, *beside), inputs)


def _measured_bundle(name: str, recipe: str, bundle: Path, inputs: tuple[Path, ...]) -> ChainStage:
    """A stage that combines checkpoints into one, exports it as a bundle, and records the bundle's figures in it."""
    checkpoint = bundle.with_suffix(".pt")

    def run(data: Path) -> None:
        from training.combine_checkpoints import CombineRecipe, combine_checkpoints
        from training.recipes import load_recipe

        combine_checkpoints(load_recipe(RECIPES / f"{recipe}.yaml", CombineRecipe), checkpoint)
        _export_and_measure(checkpoint, bundle, data)

    return ChainStage(name, run, (checkpoint, bundle), inputs, continues=False)


def _label_night_frames(data: Path) -> None:
    from training.stages.pseudo import label_night_frames

    label_night_frames(default_bundle(), data, RUNS / "pseudo_night")


def _export_and_measure(checkpoint: Path, bundle: Path, data: Path) -> None:
    from nightlab_core.export.export import export_checkpoint
    from nightlab_core.export.parity import print_parity, read_frames
    from training.evaluation.evaluate import evaluate_model

    if not print_parity(export_checkpoint(checkpoint, bundle, read_frames(data / "camvid" / "val" / "images", 8))):
        raise ValueError(f"{bundle}: the engines differ from torch more than they may; see the table above")
    evaluate_model(bundle, data, VAL_SETS, record_figures=True)


def _find_hard_classes(data: Path) -> None:
    from training.evaluation.hard_classes import write_hard_classes

    write_hard_classes(RUNS / "lite_image" / "checkpoint.pt", data, VAL_SETS, RUNS / "hard_classes.yaml")


def run_chain(stages: Sequence[ChainStage], data: Path, run: Callable[[ChainStage, Path], None]) -> dict[str, float]:
    """Run the stages that are not finished, in their order, each by `run(stage, data)`.

    Prints what is done with each stage and its time, and returns the seconds by name of the stages that ran. Raises
    FileNotFoundError for an input that no stage has made.
    """
    seconds: dict[str, float] = {}
    for stage in stages:
        action = _action_for(stage)
        print(f"{stage.name}: {'finished before' if action == 'skip' else action}", flush=True)
        if action == "skip":
            continue
        start = time.monotonic()
        run(stage, data)
        seconds[stage.name] = time.monotonic() - start
        print(f"{stage.name}: {_duration(seconds[stage.name])}", flush=True)
    if len(seconds) > 1:
        print(f"all: {_duration(sum(seconds.values()))}")
    return seconds


def run_here(stage: ChainStage, data: Path) -> None:
    """Run a stage in this process, whatever its state, and store which inputs it was made from."""
    action = _action_for(stage)
    if action == "restart" or (action == "skip" and not stage.continues):
        for path in stage.outputs:
            _remove(RUNS / path.relative_to(RUNS).parts[0])  # the whole folder of a stage
    inputs = _input_states(stage)
    _store(stage, StageRecord(inputs, finished=False))
    stage.run(data)
    _store(stage, StageRecord(inputs, finished=True))


def run_in_process(stage: ChainStage, data: Path) -> None:
    """Run a stage in a process of its own, which gives its memory back. Exit with its status if that is not 0."""
    command = [sys.executable, "-m", "training.lite", "--data", str(data), "--only", stage.name]
    if status := subprocess.run(command, env={**ALLOCATOR, **os.environ}, check=False).returncode:
        sys.exit(status)


def _action_for(stage: ChainStage) -> Action:
    exist = [path.exists() for path in stage.outputs]
    return next_action(_stored(stage), _input_states(stage), exist, stage.continues)


def _input_states(stage: ChainStage) -> dict[str, str]:
    if missing := [path for path in stage.inputs if not path.is_file()]:
        raise FileNotFoundError(f"{missing[0]}: no such file; stage {stage.name!r} needs it: run the stages before it")
    return {str(path): sha256_of(path) for path in stage.inputs}


def _stored(stage: ChainStage) -> StageRecord | None:
    if not stage.record_path.is_file():
        return None
    return StageRecord(**json.loads(stage.record_path.read_text(encoding="utf-8")))


def _store(stage: ChainStage, record: StageRecord) -> None:
    stage.record_path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(stage.record_path, json.dumps({"inputs": record.inputs, "finished": record.finished}, indent=1) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def select(stages: Sequence[ChainStage], first: str | None, last: str | None) -> Sequence[ChainStage]:
    """The stages from `first` to `last`, both included; None is the chain's own end."""
    names = [stage.name for stage in stages]
    start = names.index(first) if first else 0
    stop = names.index(last) + 1 if last else len(names)
    if start >= stop:
        raise ValueError(f"--from {first} comes after --until {last}; expected them in the order {', '.join(names)}")
    return stages[start:stop]


def main() -> None:
    """Command line."""
    stages = chain()
    names = [stage.name for stage in stages]
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"stages: {', '.join(names)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--from", dest="first", choices=names, metavar="STAGE", help="begin with this stage")
    parser.add_argument("--until", dest="last", choices=names, metavar="STAGE", help="end with this stage")
    parser.add_argument("--only", choices=names, metavar="STAGE", help="run this stage alone, finished or not")
    arguments = parser.parse_args()
    if arguments.only and (arguments.first or arguments.last):
        parser.error("--only goes without --from and --until")
    with exit_on_error(resumes=True):
        if not arguments.data.is_dir():
            raise ValueError(
                f"--data is '{arguments.data}'; expected the folder of the data sets, see docs/training.md"
            )
        if arguments.only:
            run_here(stages[names.index(arguments.only)], arguments.data)
        else:
            run_chain(select(stages, arguments.first, arguments.last), arguments.data, run_in_process)


if __name__ == "__main__":
    main()
