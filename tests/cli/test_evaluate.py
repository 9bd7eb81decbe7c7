# SPDX-License-Identifier: Apache-2.0
"""`nightlab evaluate` and `nightlab export` on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import nightlab

pytest.importorskip("torch")
pytest.importorskip("onnx")

import cv2
import numpy as np
import torch
from trees import write_image, write_label

from nightlab_core.export import export, parity


def test_a_part_of_a_data_set_is_measured_with_partial(tiny_bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "nightcity/images/val/Rome_1.png", (64, 96))
    write_label(tmp_path / "nightcity/label/val/Rome_1_labelIds.png", [7, 11], (64, 96))
    words = ["evaluate", tiny_bundle, "--data", tmp_path, "--dataset", "nightcity/val", "--engine", "onnxruntime"]
    done = nightlab(*words)
    assert done.status == 1 and "expected 1299" in done.err and "--partial" in done.err
    done = nightlab(*words, "--partial", "--set", "max_regions=0", "--json", tmp_path / "figures.json")
    assert done.status == 0 and "image level" in done.out
    assert json.loads((tmp_path / "figures.json").read_text())["nightcity/val"]["frames"] == 1
    again = nightlab(*words, "--partial", "--set", "max_regions=0", "--json", tmp_path / "figures.json")
    assert again.status == 0


@pytest.mark.parametrize("text", ["mine", "{}", "[1]", '{"mine": {"figure": 1}}'])
def test_a_file_that_is_no_report_is_kept(tiny_bundle: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    words = ["--data", tmp_path, "--dataset", "mine", "--json", tmp_path / "mine.json"]
    done = nightlab("evaluate", tiny_bundle, *words)
    assert done.status == 1 and "is no earlier report" in done.err and len(done.err.splitlines()) == 1
    assert (tmp_path / "mine.json").read_text() == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--flip"], "is a bundle, which reads a frame once and whole"),
        (["--set", "max_regions=99"], "--set max_regions=99"),
        ([], "mine/labels is not a folder"),
    ],
)
def test_wrong_options_are_one_sentence(tiny_bundle: Path, tmp_path: Path, words: list[str], said: str) -> None:
    done = nightlab("evaluate", tiny_bundle, "--data", tmp_path, "--dataset", "mine", *words)
    assert done.status == 1 and said in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("passed", [True, False])
def test_export_fails_if_an_engine_differs_from_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool
) -> None:
    def export_checkpoint(path: Path, out: Path, frames: list[np.ndarray], **options: str) -> list[parity.Parity]:
        assert (path, out, len(frames)) == (tmp_path / "all.pt", tmp_path / "bundle", 2)
        assert options == {"deform": "grid_sample", "weights": "float16"}
        return [parity.Parity("image", "openvino", 2, 1.0 if passed else 0.9, 3)]

    monkeypatch.setattr(export, "export_checkpoint", export_checkpoint)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((8, 8, 3), np.uint8))
    words = ["--out", tmp_path / "bundle", "--input", tmp_path, "--frames", 2, "--deform", "grid_sample"]
    done = nightlab("export", tmp_path / "all.pt", *words)
    assert done.status == (0 if passed else 1) and "openvino" in done.out
    assert ("differ from torch" in done.err) != passed


def test_export_names_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "frame.png"), np.zeros((8, 8, 3), np.uint8))
    torch.save({"weights": {}}, tmp_path / "other.pt")
    done = nightlab("export", tmp_path / "other.pt", "--out", tmp_path / "bundle", "--input", tmp_path)
    assert done.status == 1 and "other.pt is not a NightLab checkpoint" in done.err
    done = nightlab("export", tmp_path / "other.pt", "--out", tmp_path / "bundle", "--input", tmp_path / "none")
    assert done.status == 1 and "none" in done.err
