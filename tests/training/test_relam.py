# SPDX-License-Identifier: Apache-2.0
"""Light adaptation: the two losses part, dark images turn bright, runs go on bit by bit, and the report looks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_msssim")

from nightlab_core.config import replace  # noqa: E402
from nightlab_core.models.discriminator import PatchDiscriminator  # noqa: E402
from nightlab_core.models.nightlab import NightLabSettings, ReLAMSettings, SegmenterSettings  # noqa: E402
from training.evaluation import relam_report  # noqa: E402
from training.loop import LoopSettings  # noqa: E402
from training.recipes import load_recipe  # noqa: E402
from training.sources import SourceSettings  # noqa: E402
from training.stages import relam  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
MODEL = NightLabSettings(
    segmenter=SegmenterSettings(channels=16), relam=ReLAMSettings(channels=4, blocks=1), region_hw=(64, 64)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four dark and four bright pictures, with a labelled car in each."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, light in (("night", 30), ("day", 150)):
        for folder in ("images", "labels"):
            (root / name / folder).mkdir(parents=True)
        for i in range(4):
            texture = cv2.resize(rng.integers(0, 40, (9, 12, 3), np.uint8), (160, 120))
            cv2.imwrite(str(root / name / "images" / f"{i}.png"), texture + np.uint8(light))
            labels = np.zeros((120, 160), np.uint8)
            labels[50:90, 40 + 10 * i : 100 + 10 * i] = 13
            cv2.imwrite(str(root / name / "labels" / f"{i}.png"), labels)
    return root


def _recipe(level: str, steps: int = 2) -> relam.ReLAMRecipe:
    shipped = load_recipe(RECIPES / f"relam_{level}.yaml", relam.ReLAMRecipe)
    kind = "unlabelled" if level == "image" else "folder"
    sources = {
        name: (SourceSettings(kind=kind, folder=f"{name}/images" if level == "image" else name, weight=1.0),)  # type: ignore[arg-type]
        for name in ("night", "day")
    }
    labelled = {f"check_{name}": (SourceSettings(kind="folder", folder=name, weight=1.0),) for name in sources}
    loop = LoopSettings(
        steps=steps, batch_size=2, learning_rate=2e-3, betas=(0.5, 0.999), warmup_steps=0, checkpoint_every=1,
        workers=0, tensorboard=False,
    )  # fmt: skip
    return replace(
        shipped, model=MODEL, loop=loop, crop_hw=(64, 96), input_hw=(96, 128), hard_classes=("car",),
        discriminator=relam.DiscriminatorSettings(channels=8, layers=2, reduction=2), **sources, **labelled,
    )  # fmt: skip


def test_the_papers_discriminator_has_a_receptive_field_of_70_pixels() -> None:
    model = PatchDiscriminator().eval()
    image = torch.rand(1, 3, 256, 256)
    scores = model(image)
    assert scores.shape == (1, 1, 30, 30)  # CycleGAN's
    seen = image.clone().requires_grad_()
    model(seen)[0, 0, 15, 15].backward()
    assert seen.grad is not None
    assert [int(seen.grad.abs().sum((0, 1, axis)).count_nonzero()) for axis in (2, 3)] == [70, 70]


def test_each_network_is_trained_by_its_own_loss_only() -> None:
    torch.manual_seed(0)
    model = relam.LightAdaptation(_recipe("image"))
    torch.nn.init.normal_(model.generator.light.weight, std=0.1)
    night, day = torch.rand(2, 3, 64, 64) * 0.2, torch.rand(2, 3, 64, 64) * 0.2 + 0.6
    model.eval()  # spectral normalisation moves on at every training pass
    losses = model(night, day)
    assert set(losses) == {"adversarial", "structure", "identity", "discriminator"}
    of_generator = sum(v for k, v in losses.items() if k != "discriminator")
    of_generator.backward(retain_graph=True)
    assert all(p.grad is None for p in model.discriminator.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())
    before = [p.grad.clone() for p in model.generator.parameters()]
    losses["discriminator"].backward()
    assert all(p.grad is not None for p in model.discriminator.parameters())
    after = [p.grad for p in model.generator.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_an_untrained_adaptation_changes_nothing() -> None:
    model = relam.LightAdaptation(_recipe("image")).eval()
    image = torch.rand(1, 3, 64, 96)
    losses = model(image, image)
    assert losses["structure"].item() == pytest.approx(0, abs=1e-5) and losses["identity"].item() == 0


def test_similarity_is_computed_in_full_precision() -> None:
    model = relam.LightAdaptation(_recipe("image"))
    night = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.1
    found = []
    for half in (False, True):
        adapted = (1.3 * night).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model.similarity(adapted, night).backward()
        found.append(adapted.grad)
    torch.testing.assert_close(found[1], found[0])


def test_training_moves_night_images_towards_day(data: Path, tmp_path: Path) -> None:
    recipe = _recipe("image", steps=40)
    relam.train(recipe, data, tmp_path)
    figures = relam_report.report(recipe, data, tmp_path, count=4)
    assert figures["night_luminance_adapted"] > figures["night_luminance"] + 0.05
    moved = abs(figures["day_luminance_adapted"] - figures["day_luminance"])
    assert moved < figures["night_luminance_adapted"] - figures["night_luminance"]
    assert json.loads((tmp_path / "report.json").read_text()) == figures
    sheet = cv2.imread(str(tmp_path / "report.jpg"))
    assert sheet is not None and sheet.shape[1] == 3 * 420
    assert sheet[:, 420:840].mean() > sheet[:, :420].mean()  # the adapted column is brighter than the night's


def test_region_images_are_crops_of_windows(data: Path) -> None:
    night, day = relam.streams(_recipe("region"), data)[3]
    assert night.shape == day.shape == (3, 64, 64) and day.mean() > night.mean()


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"segmenter.x": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no light adaptation"):
        relam.load_relam(MODEL.build_level(), tmp_path / "x.pt")


@pytest.mark.parametrize("settings", [None, ReLAMSettings(channels=2, blocks=1)])
def test_light_adaptation_of_another_size_is_refused(settings: ReLAMSettings | None, tmp_path: Path) -> None:
    weights = {f"generator.{k}": v for k, v in MODEL.build_level().relam.state_dict().items()}
    torch.save({"model": weights, "average": None}, tmp_path / "x.pt")
    level = replace(MODEL, relam=settings).build_level()
    with pytest.raises(ValueError, match=r"relam_from: .*x\.pt does not fit model\.relam of the recipe"):
        relam.load_relam(level, tmp_path / "x.pt")
    same = MODEL.build_level()
    torch.nn.init.ones_(same.relam.light.bias)
    relam.load_relam(same, tmp_path / "x.pt")
    assert not same.relam.light.bias.any()


def test_a_recipe_without_light_adaptation_is_refused() -> None:
    recipe = _recipe("image")
    with pytest.raises(ValueError, match=r"model\.relam is null"):
        relam.LightAdaptation(replace(recipe, model=replace(MODEL, relam=None)))
