# SPDX-License-Identifier: Apache-2.0
"""The samples of a region level that reads the image level's probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from class_sets import CITYSCAPES19  # noqa: E402
from tiny_training import CARD, INPUT_HW, tiny_settings, write_frames  # noqa: E402

from nightlab_core.models.checkpoint import save_checkpoint  # noqa: E402
from training import context, data, sources  # noqa: E402
from training.checkpoint import load_weights  # noqa: E402
from training.stages import segmenter  # noqa: E402

SOURCES = [sources.SourceSettings(kind="folder", folder="mine", weight=1.0)]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frames")
    write_frames(folder / "mine", 2)
    return folder


def stream(frames: Path, contexts: list[np.ndarray], **changes: Any) -> context.ContextStream:
    return context.ContextStream(SOURCES, frames, 0, CITYSCAPES19, (32, 32), [5, 11], contexts=contexts, **changes)


def test_the_first_draws_are_read_once(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings()
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "whole.pt", settings.build(), settings, CARD)
    recipe = context.ContextSettings(image_level=str(tmp_path / "whole.pt"), frames=3)
    samples = data.Samples(SOURCES, frames, 0, CITYSCAPES19)
    found = context.read_contexts(recipe, settings, samples, INPUT_HW, tmp_path)
    assert [one.dtype for one in found] == [np.uint8] * 3
    for one in found:
        np.testing.assert_allclose(one.astype(int).sum(axis=2), 255, atol=10)  # 19 rounded numbers
    monkeypatch.setattr(samples, "draw", None)
    kept = context.read_contexts(recipe, settings, samples, INPUT_HW, tmp_path)  # not drawn again
    for one, again in zip(found, kept, strict=True):
        np.testing.assert_array_equal(one, again)
    others = data.Samples(SOURCES, frames, 1, CITYSCAPES19)
    of_others = context.read_contexts(recipe, settings, others, INPUT_HW, tmp_path)
    assert any(not np.array_equal(one, other) for one, other in zip(found, of_others, strict=True))


def test_crop_labels_and_probabilities_show_one_window(frames: Path) -> None:
    samples = data.Samples(SOURCES, frames, 0, CITYSCAPES19)
    contexts = []
    for number in range(4):  # an image level that is certain of the true labels
        labels = samples.draw(number)[1].labels
        contexts.append(255 * (labels[..., None] == np.arange(19)).astype(np.uint8))
    for index in range(12):
        crop, labels, probabilities = stream(frames, contexts)[index]
        assert (crop.shape, labels.shape, probabilities.shape) == ((3, 32, 32), (32, 32), (19, 8, 8))
        there, known = labels[2::4, 2::4], labels[2::4, 2::4] != 255
        assert (probabilities.argmax(0) == there)[known].float().mean() > 0.8, index


def test_nothing_can_be_pasted(frames: Path) -> None:
    with pytest.raises(ValueError, match="paste_share"):
        stream(frames, [], paste_ids=[11], paste_share=0.5)


def test_a_mixture_is_trained_alone(frames: Path, tmp_path: Path) -> None:
    """The networks that it mixes stay as they are, with the statistics of their normalisations."""
    settings = tiny_settings()
    save_checkpoint(tmp_path / "whole.pt", settings.build(), settings, CARD)
    tree = {
        "model": {**settings.model_dump(mode="json"), "region_context": True, "region_hw": [32, 32]},
        "level": "region",
        "start_from": str(tmp_path / "whole.pt"),
        "context": {"image_level": str(tmp_path / "whole.pt"), "frames": 2},
        "only_mixture": True,
        "hard_classes": ["pole", "person"],
        "input_hw": list(INPUT_HW),
        "sources": [{"kind": "folder", "folder": "mine", "weight": 1.0}],
        "loop": {
            "steps": 3, "batch_size": 2, "learning_rate": 0.01, "warmup_steps": 0, "workers": 0, "tensorboard": False
        },
    }  # fmt: skip
    recipe = segmenter.SegmenterRecipe.model_validate(tree, strict=False)
    segmenter.train(recipe, frames, tmp_path / "out")
    before, after = (load_weights(path) for path in (tmp_path / "whole.pt", tmp_path / "out" / "checkpoint.pt"))
    mixing = {key for key in after if key.startswith(("prior.", "trust."))}
    assert any(after[key].any() for key in mixing if key.endswith("weight"))
    for key in after.keys() - mixing:
        assert torch.equal(after[key], before[f"region.{key}"].to(after[key].dtype)), key
