# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs to the command lines of training: one sentence, an exit status, and no traceback."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

STAGES = ("segmenter", "relam", "hdm", "joint", "detector")
#: Other command lines than those of the stages, in a folder with the files of `folder`, and a part of the sentence.
LINES = {
    "stages.pseudo missing --data folder --out out": "images is not a folder",
    "evaluation.ablate broken.yaml --data folder --set camvid/val": "broken.yaml: not readable as YAML",
    "evaluation.hard_classes model.pt --data folder --set camvid/val --out out": "model.pt is not a checkpoint",
    "evaluation.relam_report broken.yaml --data folder --out out": "broken.yaml: not readable as YAML",
    "evaluation.pictures missing --out out": "missing/bundle.yaml: no such file",
    "evaluation.results missing.json --out out": "missing.json",
    "combine_checkpoints broken.yaml --out out": "broken.yaml: not readable as YAML",
    "smoke broken_image.yaml": "broken_image.yaml",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "broken.yaml").write_text("a: [\n")
    (tmp_path / "wrong.yaml").write_text("nothing: 1\n")
    (tmp_path / "model.pt").write_bytes(b"rubbish")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a module as a command line, and return the sentence with which it ends."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    command = importlib.import_module(f"training.{module}")
    with pytest.raises(SystemExit) as ended:
        command.STAGE.main(None) if hasattr(command, "STAGE") else command.main()
    error = capsys.readouterr().err
    assert ended.value.code == 1 and error.startswith("error: ") and "Traceback" not in error, error
    assert all(line.startswith("key ") for line in error.splitlines()[1:]), "one sentence, or one for each key"
    return error


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("missing.yaml", "missing.yaml"),
        ("broken.yaml", "broken.yaml: not readable as YAML"),
        ("wrong.yaml", "key 'nothing': received an unknown key"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_recipe_is_one_sentence(
    stage: str, recipe: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence in said(f"stages.{stage}", [recipe, "--data", "folder", "--out", "out"], monkeypatch, capsys)
    assert not Path("out").exists()


@pytest.mark.parametrize("line", LINES)
@pytest.mark.usefixtures("folder")
def test_a_wrong_file_is_one_sentence(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *words = line.split(" ")
    assert LINES[line] in said(module, words, monkeypatch, capsys)
