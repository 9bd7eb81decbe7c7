# SPDX-License-Identifier: Apache-2.0
"""Joint training: the losses of equation 8 and their weights, and a whole NightLab at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from tiny_training import tiny_settings  # noqa: E402

from nightlab_core.config import replace  # noqa: E402
from training.combine_checkpoints import load_stages  # noqa: E402
from training.loop import Mean  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.sources import SourceSettings  # noqa: E402
from training.stages import joint  # noqa: E402

SHIPPED = Path(__file__).parents[2] / "config" / "train" / "lite_joint.yaml"
MODEL = tiny_settings(8)
SOURCES = (
    SourceSettings(kind="folder", folder="mine", weight=1.0),
    SourceSettings(kind="camvid", folder="camvid", split="train", weight=1.0),
)
LIGHT = joint.LightSettings(
    night=SOURCES[:1],
    day=SOURCES[1:],
    discriminator=joint.DiscriminatorSettings(channels=4, layers=1),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> joint.JointRecipe:
    """The shipped recipe on tiny networks, and checkpoints with random weights."""
    folder = tmp_path_factory.mktemp("stages")
    torch.manual_seed(0)
    torch.save({"model": MODEL.build_level().state_dict(), "average": None}, folder / "level.pt")
    detector = {f"detector.{k}": v for k, v in MODEL.build_detector().state_dict().items()}
    torch.save({"model": detector, "average": None}, folder / "detector.pt")
    shipped = load_recipe(SHIPPED, joint.JointRecipe)
    loop = replace(
        shipped.loop, steps=4, batch_size=2, warmup_steps=0, checkpoint_every=2, workers=0, tensorboard=False,
        learning_rate=1e-3,
    )  # fmt: skip
    return replace(
        shipped, model=MODEL, image=str(folder / "level.pt"), region=str(folder / "level.pt"),
        detector=str(folder / "detector.pt"), loop=loop, sources=SOURCES, image_light=LIGHT, region_light=LIGHT,
        input_hw=(64, 96), crop_hw=(64, 96), hard_classes=("pole", "car", "person"), per_frame=2,
    )  # fmt: skip


def _values(losses: joint.Losses) -> dict[str, float]:
    return {k: (v.value if isinstance(v, Mean) else v).item() for k, v in losses.items()}


def test_equation_8_adds_the_losses_of_all_stages(recipe: joint.JointRecipe, frames: Path) -> None:
    stream = joint.JointStream(recipe, frames)
    samples = [stream[i] for i in range(6)]
    assert {sample.sources[0] for sample in samples} == {0, 1}  # both kinds of labels
    batch = joint.collate([*samples[:2], next(s for s in samples if s.sources[0])])
    assert batch.frames.shape == (3, 3, 64, 96) and batch.windows.shape == (3, 3, 64, 64) and len(batch.boxes) == 3
    model = joint.Joint(load_stages(recipe), recipe).eval()
    torch.manual_seed(0)
    found = _values(model(batch))
    light = {f"{level}_{part}" for level in joint.LEVELS for part in ("adversarial", "structure", "identity")}
    discriminators = {f"{level}_discriminator" for level in joint.LEVELS}
    segmentation, detection = {"image_cross_entropy", "region_cross_entropy"}, {"objectness", "box", "hardness"}
    assert set(found) == segmentation | detection | light | discriminators
    assert all(value >= 0 for value in found.values()) and found["hardness"] > 0

    weights = joint.LossWeights(segmentation=2.0, detection=3.0, light=0.5)
    model.recipe = replace(recipe, weights=weights)
    torch.manual_seed(0)
    for name, value in _values(model(batch)).items():
        of_stage = {**dict.fromkeys(segmentation, 2.0), **dict.fromkeys(detection, 3.0), **dict.fromkeys(light, 5.0)}
        assert value == pytest.approx(found[name] * of_stage.get(name, 1.0), rel=1e-5), name  # light: 0.1 before


def test_each_level_uses_its_own_class_weights(recipe: joint.JointRecipe) -> None:
    nightlab, own = load_stages(recipe), {"car": 3.0}
    for of_region, expected in ((own, (1.0, 3.0)), (None, (2.0, 1.0))):
        told = replace(recipe, class_weights={"pole": 2.0}, region_class_weights=of_region)
        model = joint.Joint(nightlab, told)
        image, region = model.get_buffer("image_weight"), model.get_buffer("region_weight")
        assert (float(image[5]), float(image[13])) == (2.0, 1.0)
        assert (float(region[5]), float(region[13])) == expected
    with pytest.raises(KeyError, match="names 'lamp'"):
        joint.Joint(nightlab, replace(recipe, region_class_weights={"lamp": 2.0}))


def test_the_levels_draw_different_frames(recipe: joint.JointRecipe, frames: Path) -> None:
    stream = joint.JointStream(recipe, frames)
    images = [stream.frames.draw(i)[2] for i in range(6)]
    windows = [stream.windows.draw(i)[2] for i in range(6)]
    assert not any((image == window).all() for image, window in zip(images, windows, strict=True))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_proposals_are_also_ranked_in_mixed_precision(
    recipe: joint.JointRecipe, frames: Path, precision: torch.dtype
) -> None:
    stream = joint.JointStream(recipe, frames)
    model = joint.Joint(load_stages(recipe), recipe).train()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        found = _values(model(joint.collate([stream[i] for i in range(2)])))
        scores = model.nightlab.detector.propose(stream[0].frames[None])[1]
    assert all(np.isfinite(v) for v in found.values())
    assert scores.dtype == torch.float32 and scores.unique().numel() > scores.numel() // 2


def test_every_weight_is_trained_and_modes_stay(recipe: joint.JointRecipe, frames: Path) -> None:
    stream = joint.JointStream(recipe, frames)
    model = joint.Joint(load_stages(recipe), recipe).train()
    joint.freeze(model.nightlab.image.segmenter.backbone, 1)
    modes = [module.training for module in model.modules()]
    batch = joint.collate([stream[i] for i in range(2)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    totals = []
    for _ in range(24):
        losses = model(batch)
        total = sum(loss.value if isinstance(loss, Mean) else loss for loss in losses.values())
        optimizer.zero_grad()
        total.backward()  # type: ignore[union-attr]
        optimizer.step()
        totals.append(sum(v for k, v in _values(losses).items() if "cross_entropy" in k))
    assert totals[-1] < 0.8 * totals[0]
    assert modes == [module.training for module in model.modules()]
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []  # or several processes could not train together
    assert model.light["image"].generator is model.nightlab.image.relam


def test_a_missing_stage_is_named(recipe: joint.JointRecipe, frames: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint; train that stage first"):
        joint.train(replace(recipe, region=str(tmp_path / "none.pt")), frames, tmp_path / "out")
