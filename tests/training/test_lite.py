# SPDX-License-Identifier: Apache-2.0
"""The lite bundle's training chain: what runs when, and the whole chain once on tiny data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning")

from tiny_bundle import write_tiny_bundle
from tiny_training import tiny_recipe, tiny_settings, write_frames, write_recipe, write_tiny_checkpoint

from nightlab_core.runtime.bundle import load_bundle
from training import lite
from training.lite import ChainStage, StageRecord, next_action, run_chain, run_here, select
from training.recipes import read_recipe

RECIPES = Path(__file__).parents[2] / "config" / "train"
OLD, NEW = {"a.pt": "1"}, {"a.pt": "2"}


@pytest.mark.parametrize(
    ("record", "inputs", "outputs_exist", "continues", "expected"),
    [
        (None, OLD, [False], True, "start"),  # never run
        (None, OLD, [False], False, "start"),
        (None, OLD, [True], True, "continue"),  # trained by the stage's own command
        (None, OLD, [True], False, "restart"),
        (None, OLD, [False, True], True, "continue"),
        (StageRecord(OLD, finished=False), OLD, [False], True, "continue"),  # stopped before its first checkpoint
        (StageRecord(OLD, finished=False), OLD, [True], True, "continue"),  # stopped later
        (StageRecord(OLD, finished=False), OLD, [True], False, "restart"),
        (StageRecord(OLD, finished=True), OLD, [True], True, "skip"),
        (StageRecord(OLD, finished=True), OLD, [True], False, "skip"),
        (StageRecord(OLD, finished=True), OLD, [True, False], True, "continue"),  # the user removed an output
        (StageRecord(OLD, finished=True), OLD, [False], False, "restart"),
        (StageRecord(OLD, finished=True), NEW, [True], True, "restart"),  # an earlier stage ran again
        (StageRecord(OLD, finished=False), NEW, [True], True, "restart"),
        (StageRecord(OLD, finished=True), NEW, [False], True, "restart"),
        (StageRecord({}, finished=True), {}, [True], True, "skip"),  # a stage without inputs
    ],
)
def test_the_state_of_a_stage_follows_from_its_files(
    record: StageRecord | None, inputs: dict[str, str], outputs_exist: list[bool], continues: bool, expected: str
) -> None:
    assert next_action(record, inputs, outputs_exist, continues) == expected


def _copying_chain(ran: list[str]) -> tuple[ChainStage, ...]:
    """Three stages that copy a file each: source -> one -> two -> three."""

    def stage(name: str, read: Path, write: Path, **settings: Any) -> ChainStage:
        def run(data: Path) -> None:
            ran.append(name)
            write.parent.mkdir(parents=True, exist_ok=True)
            write.write_text((data / "source" if read == data else read).read_text())

        return ChainStage(name, run, (write,), () if name == "one" else (read,), **settings)

    one, two, three = (lite.RUNS / name / "out.pt" for name in ("one", "two", "three"))
    return stage("one", Path("data"), one), stage("two", one, two, continues=False), stage("three", two, three)


def test_a_finished_stage_is_skipped_until_its_input_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, ran = Path("data"), list[str]()
    data.mkdir()
    (data / "source").write_text("first")
    stages = _copying_chain(ran)
    assert list(run_chain(stages, data, run_here)) == ["one", "two", "three"] == ran
    assert run_chain(stages, data, run_here) == {}
    ran.clear()
    (data / "source").write_text("second")
    (tmp_path / "runs" / "one" / "out.pt").unlink()  # what the user does to train a stage again
    (tmp_path / "runs" / "three" / "old").touch()
    run_chain(stages, data, run_here)
    assert ran == ["one", "two", "three"] and Path("runs/three/out.pt").read_text() == "second"
    assert not Path("runs/three/old").exists()  # a stage that starts again starts in an empty folder
    ran.clear()
    Path("runs/one/out.pt").write_text("second")  # the same content, written later
    assert run_chain(stages, data, run_here) == {}


def test_a_stopped_stage_continues_and_a_missing_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    ran: list[str] = []
    one, two, _ = _copying_chain(ran)
    with pytest.raises(FileNotFoundError):  # there is no source yet: the stage fails
        run_chain((one,), Path("data"), run_here)
    (tmp_path / "data" / "source").write_text("x")
    run_chain((one,), Path("data"), run_here)
    assert ran == ["one", "one"]
    Path("runs/one/out.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"one/out\.pt: no such file; stage 'two' needs it"):
        run_chain((two,), Path("data"), run_here)


def test_stages_are_selected_by_name() -> None:
    stages = lite.chain()
    names = [stage.name for stage in stages]
    assert list(select(stages, None, None)) == list(stages)
    assert [stage.name for stage in select(stages, "hdm", "bundle")] == ["hdm", "bundle"]
    assert [stage.name for stage in select(stages, "joint", None)] == names[names.index("joint") :]
    with pytest.raises(ValueError, match="--from bundle comes after --until image"):
        select(stages, "bundle", "image")


def test_missing_data_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lite", "--data", "/no/such/folder"])
    with pytest.raises(SystemExit) as stopped:
        lite.main()
    assert stopped.value.code == 1 and "expected the folder of the data sets" in capsys.readouterr().err


def test_each_stage_runs_in_a_process_and_a_failure_stops_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], check: bool, env: dict[str, str]) -> Any:
        assert env["MALLOC_MMAP_MAX_"] == "0" and "PATH" in env
        commands.append(command)
        return type("Done", (), {"returncode": 3 if command[-1] == "image" else 0})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lite.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["lite", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        lite.main()
    assert stopped.value.code == 3
    assert [command[1:] for command in commands] == [
        ["-m", "training.lite", "--data", str(tmp_path), "--only", name] for name in ("night_labels", "image")
    ]


def test_each_stage_reads_what_an_earlier_one_writes() -> None:
    """The recipes and the chain name the same files."""
    recipes = {
        "image": "lite_image", "region": "lite_region", "detector": "lite_detector", "rdn_bundle": "lite_bundle",
        "hdm": "lite_hdm_helps", "bundle": "lite_hdm_bundle", "joint": "lite_joint",
    }  # fmt: skip
    written: set[str] = set()
    for stage in lite.chain():
        if stage.name in recipes:
            tree = read_recipe(RECIPES / f"{recipes[stage.name]}.yaml")
            named = [tree.get(key, []) for key in ("start_from", "image", "region", "detector", "levels")]
            named += [source["folder"] for source in tree.get("sources", ()) if source["kind"] == "pseudo"]
            for path in (p for n in named for p in ([n] if isinstance(n, str) else n)):
                assert path in written or path == "checkpoints/nightlab-lite.pt", f"{stage.name}: {path}"
            if "proposals" in tree:
                assert tree["proposals"] in map(str, stage.outputs)
        assert all(str(path) in written or str(path.parent) in written for path in stage.inputs)
        written |= {str(path) for path in stage.outputs}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny data in `data`, the recipes made tiny, and tiny weights to start from."""
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    folders = {"bdd/clean": 2, "bdd/noisy": 2, "nightcoarse/train": 2, "nightcoarse/val": 1, "nightcoarse/val2": 1}
    for i, (folder, count) in enumerate({**folders, "camvid/train": 2, "camvid/val": 2}.items()):
        write_frames(tmp_path / "data" / folder, count, first_seed=10 * i, camvid="camvid" in folder)
    for i, folder in enumerate(("night", "day")):
        write_frames(tmp_path / folder, 2, first_seed=100 + 10 * i)
        (tmp_path / "data" / "daynight").mkdir(exist_ok=True)
        (tmp_path / folder / "images").rename(tmp_path / "data" / "daynight" / folder)
    sources = [{"kind": "camvid", "folder": "camvid", "split": "train", "weight": 1.0}]
    for path in (*RECIPES.glob("lite_*.yaml"), *RECIPES.glob("relam_*.yaml")):
        with_labels = [*sources, {"kind": "pseudo", "folder": "runs/pseudo_night", "weight": 0.3}]
        changes = {"sources": with_labels if path.stem == "lite_image" else sources}
        write_recipe(tmp_path / "config" / "train" / path.name, tiny_recipe(path.stem, **changes))
    write_tiny_checkpoint(tmp_path / "checkpoints" / "nightlab-lite.pt", tiny_settings())
    bundle = write_tiny_bundle(tmp_path / "shipped")
    monkeypatch.setattr(lite, "default_bundle", lambda: bundle)
    return tmp_path


def test_the_command_writes_measured_bundles_and_repeats_only_changed_stages(workplace: Path) -> None:
    data, runs = workplace / "data", workplace / "runs"
    names = [stage.name for stage in lite.chain()]
    assert list(run_chain(lite.chain(), data, run_here)) == names
    for bundle in ("lite_rdn_bundle", "nightlab-lite", "nightlab-lite-joint"):
        measured = load_bundle(runs / bundle).manifest.accuracy
        assert {"camvid_val_both_levels_miou", "nightcoarse_val_difference"} <= set(measured), bundle
    assert len(list((runs / "pseudo_night" / "labels").iterdir())) == 2
    assert "hard_classes" in (runs / "hard_classes.yaml").read_text()

    measured_on = (runs / "lite_proposals.npz").read_bytes()
    (runs / "lite_hdm_helps" / "checkpoint.pt").unlink()
    assert next(iter(run_chain(lite.chain(), data, run_here))) == "hdm"
    assert (runs / "lite_proposals.npz").read_bytes() == measured_on
