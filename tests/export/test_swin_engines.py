# SPDX-License-Identifier: Apache-2.0
"""The Swin-T recipe from torch to TensorRT plans in half precision, on the CPU. Random weights, small pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx")

import torch

from nightlab_core.export.export import export_bundle
from nightlab_core.models.checkpoint import ModelCard
from nightlab_core.models.nightlab import NightLabSettings, SegmenterSettings
from nightlab_core.runtime.bundle import ENGINE_KINDS, load_bundle
from nightlab_core.runtime.engines.tensorrt.build import build_plan, plan_key, plan_shapes
from nightlab_core.runtime.engines.tensorrt.libraries import import_library

SETTINGS = NightLabSettings(
    segmenter=SegmenterSettings(
        backbone="swin_tiny_patch4_window7_224", stages=0, channels=128, strides=(4, 8, 16, 32)
    ),
    region_hw=(96, 96),
)
CARD = ModelCard(name="swin", hard_classes=("pole",), trained_on=("nothing",), licence="none", input_hw=(96, 128))


@pytest.mark.slow
def test_all_three_engines_build_with_attention_s_sums_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_bundle(SETTINGS.build().eval(), SETTINGS, CARD, tmp_path)
    bundle, library = load_bundle(tmp_path), import_library("tensorrt_rtx")
    for kind in ENGINE_KINDS:
        shapes = plan_shapes(bundle, kind, (96, 128))
        key = plan_key(bundle, kind, library, library.target(None), "float16", shapes)
        header, was_built = build_plan(bundle, key, library, tmp_path / "plans")
        assert was_built
        half, full = header.layers["float16"], header.layers["float32"]
        assert not {"SOFTMAX", "NORMALIZATION", "GRID_SAMPLE", "REDUCE"} & set(half), kind
        if kind != "hardness":
            assert half["MATRIX_MULTIPLY"] > 50 and "MATRIX_MULTIPLY" not in full, kind
            assert full["SOFTMAX"] == 12 and full["NORMALIZATION"] > 20, kind
