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
import torch
from trees import write_image, write_label

from nightlab_core.data.rendered import night
from nightlab_core.export.export import ModelCard, save_checkpoint
from nightlab_core.models.nightlab import DetectorSettings, NightLabSettings, SegmenterSettings


def test_a_part_of_a_data_set_is_measured_with_partial(tiny_bundle: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "nightcity/images/val/Rome_1.png", (64, 96))
    write_label(tmp_path / "nightcity/label/val/Rome_1_labelIds.png", [7, 11], (64, 96))
    words = ["evaluate", tiny_bundle, "--data", tmp_path, "--dataset", "nightcity/val", "--engine", "onnxruntime"]
    done = nightlab(*words)
    assert done.status == 1 and "expected 1299" in done.err and "--partial" in done.err
    done = nightlab(*words, "--partial", "--set", "max_regions=0", "--json", tmp_path / "figures.json")
    assert done.status == 0 and "image level" in done.out
    assert json.loads((tmp_path / "figures.json").read_text())["nightcity/val"]["frames"] == 1


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small NightLab without training."""
    torch.manual_seed(0)
    settings = NightLabSettings(
        segmenter=SegmenterSettings(stages=5, channels=8, strides=(8, 16), deformable=()),
        relam=None,
        detector=DetectorSettings(channels=16, max_boxes=20),
        region_hw=(64, 64),
    )
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    card = ModelCard(name="tiny", hard_classes=("pole",), trained_on=(), licence="none", input_hw=(96, 128))
    save_checkpoint(path, settings.build(), settings, card)
    return path


def test_export_writes_a_bundle_and_prints_its_parity(checkpoint: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "frame.png"), night.render_scene(0, size_hw=(96, 128)).image_bgr)
    done = nightlab("export", checkpoint, "--out", tmp_path / "bundle", "--input", tmp_path, "--frames", 1)
    assert "openvino" in done.out and "onnxruntime" in done.out and (tmp_path / "bundle" / "bundle.yaml").is_file()
    # Without training, confidences are so close that a few labels may differ from torch's.
    assert (done.status, done.err) == (0, "") or (done.status == 1 and "differ from torch" in done.err)


def test_export_names_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "frame.png"), night.render_scene(0, size_hw=(96, 128)).image_bgr)
    torch.save({"weights": {}}, tmp_path / "other.pt")
    done = nightlab("export", tmp_path / "other.pt", "--out", tmp_path / "bundle", "--input", tmp_path)
    assert done.status == 1 and "other.pt is not a NightLab checkpoint" in done.err
    done = nightlab("export", tmp_path / "other.pt", "--out", tmp_path / "bundle", "--input", tmp_path / "none")
    assert done.status == 1 and "none" in done.err
