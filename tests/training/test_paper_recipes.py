# SPDX-License-Identifier: Apache-2.0
"""The paper's recipes are whole: every stage, of one model, each reading what another writes; and they build."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
pytest.importorskip("pytorch_msssim")

from nightlab_core.config import Settings, load_yaml, replace  # noqa: E402
from nightlab_core.labels import CITYSCAPES19  # noqa: E402
from nightlab_core.models.nightlab import DetectorSettings, NightLabSettings, ReLAMSettings  # noqa: E402
from nightlab_core.models.nightlab import SegmenterSettings as Segmenter  # noqa: E402
from training import bundle, detector, hdm, joint, relam, segmenter, smoke  # noqa: E402

RECIPES = Path(__file__).parents[2] / "config" / "train"
NAMES = ("nightcity_plus_swin_b", "bdd100k_night_swin_b", "nightcity_plus_deeplabv3plus_r101")
STAGES: dict[str, type[Settings]] = {
    "relam_image": relam.ReLAMRecipe,
    "relam_region": relam.ReLAMRecipe,
    "image": segmenter.SegmenterRecipe,
    "region": segmenter.SegmenterRecipe,
    "detector": detector.DetectorRecipe,
    "bundle": bundle.BundleRecipe,
    "hdm": hdm.HdmRecipe,
    "hdm_bundle": bundle.BundleRecipe,
    "joint": joint.JointRecipe,
}


def _recipes(name: str) -> dict[str, Any]:
    return {stage: load_yaml(RECIPES / name / f"{stage}.yaml", cls) for stage, cls in STAGES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_there_and_reads_what_another_writes(name: str) -> None:
    assert {p.stem for p in (RECIPES / name).glob("*.yaml")} == set(STAGES)
    recipes = _recipes(name)
    written = {f"runs/{name}/{stage}/checkpoint.pt" for stage in STAGES} | {f"runs/{name}/rdn.pt", ""}
    for stage, recipe in recipes.items():
        model = replace(recipe.model, detector=replace(recipe.model.detector, hdm_channels=0))
        assert model == recipes["image"].model, stage
        for key in ("start_from", "relam_from", "image", "region", "detector", "levels"):
            assert getattr(recipe, key, "") in written, (stage, key)
        for hard in getattr(recipe, "hard_classes", ()):
            CITYSCAPES19.id_of(hard)
    kinds = {source.kind for source in recipes["image"].sources}
    assert kinds == ({"bdd100k_night", "bdd100k"} if "bdd" in name else {"nightcity_plus", "cityscapes"})


@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_is_the_papers(name: str) -> None:
    for recipe in (_recipes(name)["image"], _recipes(name)["region"]):
        assert recipe.loop.steps == 80_000 and recipe.loop.warmup_steps == 1500
        assert not recipe.frozen_stages and not recipe.frozen_statistics  # SyncBN has statistics to bring together
        assert recipe.model.relam == ReLAMSettings(channels=64, blocks=9, reduction=1)
    image = _recipes(name)["image"]
    assert image.crop_hw == (512, 1024) and image.scale == (0.5, 2.0)


@pytest.mark.parametrize(("name", "millions"), [(NAMES[0], (120, 180)), (NAMES[2], (60, 90))])
def test_the_networks_are_of_the_papers_size(name: str, millions: tuple[int, int]) -> None:
    with torch.device("meta"):
        level = _recipes(name)["image"].model.build_level("image")
        _recipes(name)["detector"].model.build_detector()
    count = sum(p.numel() for p in level.parameters()) / 1e6
    assert millions[0] < count < millions[1], count


@pytest.mark.parametrize("stage", ["image", "region", "relam_image", "detector"])
def test_the_smoke_run_trains_and_states_its_memory(stage: str, tmp_path: Path) -> None:
    """As the command does it, with the recipe made small: the schedule, losses and the loop are the stage's own."""
    recipe = load_yaml(RECIPES / NAMES[2] / f"{stage}.yaml", STAGES[stage])
    small = NightLabSettings(
        segmenter=Segmenter(architecture="deeplabv3plus", backbone="resnet18", channels=16),
        relam=ReLAMSettings(channels=4, blocks=1),
        detector=DetectorSettings(channels=16),
        region_hw=(64, 64),
    )
    changes: dict[str, Any] = {"model": small}
    if hasattr(recipe, "crop_hw"):
        changes["crop_hw"] = (64, 96)
    if stage == "relam_image":
        changes["crop_hw"] = (96, 96)
        changes["discriminator"] = relam.DiscriminatorSettings(channels=4, layers=2)
    path = tmp_path / f"{stage}.yaml"
    path.write_text(replace(recipe, **changes).model_dump_json())  # JSON is YAML
    figures = smoke.smoke(path, steps=2, batch_size=2, precision="32-true")
    assert figures["batch_size"] == 2 and figures["peak_process_gb"] > 0.1
    assert 0.001 < figures["weights_million"] < 40


def test_a_recipe_that_trains_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="stage 'bundle'"):
        smoke.recipe_class(RECIPES / NAMES[0] / "bundle.yaml")
