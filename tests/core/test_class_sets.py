# SPDX-License-Identifier: Apache-2.0
"""Class sets as data: the shipped files, a user's own file, and the error for each mistake in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from class_sets import BDD18, CAMVID11, CITYSCAPES19

from nightlab_core.classes import (
    ClassSetField,
    class_set_of_folder,
    load_class_set,
    shipped_class_set,
    shipped_keys,
)
from nightlab_core.config import Settings, load_yaml
from nightlab_core.labels import training_ids
from nightlab_core.yaml_files import ConfigError

OWN = """
classes:
  ground: [128, 64, 128]
  "no": [1, 2, 3]
  vehicle: [0, 0, 142]
to:
  cityscapes19: {ground: road, "no": null, vehicle: [car, truck]}
from:
  camvid11:
    {road: ground, pavement: ground, car: vehicle, sky: null, building: null, pole: null, tree: null, sign: null,
     fence: null, pedestrian: null, bicyclist: null}
"""


class _Recipe(Settings):
    classes: ClassSetField


def _write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_the_shipped_sets() -> None:
    assert shipped_keys() == ("autoware16", "bdd18", "camvid11", "cityscapes19")
    assert [len(load_class_set(key)) for key in shipped_keys()] == [16, 18, 11, 19]
    assert shipped_class_set(BDD18.names, BDD18.colors_rgb) is BDD18
    assert shipped_class_set(BDD18.names, BDD18.colors_rgb[::-1]) is None
    assert class_set_of_folder(Path("/data/CamVid/test")) is CAMVID11
    assert class_set_of_folder(Path("/data/mine")) is None


def test_a_users_own_file(tmp_path: Path) -> None:
    own = load_class_set(_write(tmp_path, OWN))
    assert own.key == "own" and own.names == ("ground", "no", "vehicle") and own.colors_rgb[2] == (0, 0, 142)
    assert training_ids(own, CITYSCAPES19) == {0: 0, 1: 255, 2: 13}
    assert training_ids(own, CITYSCAPES19, [(13, 14)]) == {0: 0, 1: 255, 2: 19}
    to_own = training_ids(CAMVID11, own)
    assert {CAMVID11.names[i]: own.names[t] for i, t in to_own.items() if t != 255} == {
        "road": "ground", "pavement": "ground", "car": "vehicle",
    }  # fmt: skip
    assert load_class_set(str(tmp_path / "own.yaml")) is own


def test_own_files_name_each_other(tmp_path: Path) -> None:
    _write(tmp_path, "classes: {a: [1, 1, 1]}\nfrom: {second.yaml: {b: a}}", "first.yaml")
    _write(tmp_path, "classes: {b: [1, 1, 1]}\nto: {first.yaml: {b: a}}", "second.yaml")
    first, second = (load_class_set(tmp_path / name) for name in ("first.yaml", "second.yaml"))
    assert training_ids(second, first) == {0: 0}


def test_settings_hold_the_whole_set(tmp_path: Path) -> None:
    """A checkpoint's recipe stays complete when the YAML file is gone."""
    path = _write(tmp_path, OWN)
    recipe = load_yaml(_write(tmp_path, f"classes: {path}", "recipe.yaml"), _Recipe)
    again = _Recipe.model_validate(recipe.model_dump(mode="json"), strict=False)
    assert recipe == again and again.classes.names == ("ground", "no", "vehicle")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: key 'classes': .*class set 'ade20k' is not known"):
        load_yaml(_write(tmp_path, "classes: ade20k", "recipe.yaml"), _Recipe)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classes: {a: [1, 2, 3]}\ncolours: 1", r"key 'colours': received an unknown key; expected one of"),
        ("classes: {a: [1, 2, 3], a: [4, 5, 6]}", "key 'a' is written twice"),
        ("classes: {a: [1, 2, 256]}", r"key 'classes.a.2': received 256"),
        ("classes: {a: [1, 2]}", r"key 'classes.a.2': received nothing"),
        ("classes: {a: red}", r"key 'classes.a': received 'red'"),
        ("classes: {}", "key 'classes'"),
        ("to: {}", "key 'classes': received nothing"),
        ("classes: {a: [1, 2, 3], b: [1, 2, 3]}", "key 'classes.b': received the colour of 'a'"),
        ("classes: {a: [0, 0, 0]}", "key 'classes.a': received black"),
        ("classes: {no: [1, 2, 3]}", "key 'classes': received False as a name; .* in quotes"),
        (
            "classes: {a: [1, 2, 3]}\nto: {cityscapes: {a: road}}",
            "received the class set 'cityscapes'; expected",
        ),
        ("classes: {a: [1, 2, 3]}\nto: {cityscapes19: {b: road}}", "received the class 'b'; expected one of a$"),
        (
            "classes: {a: [1, 2, 3]}\nto: {cityscapes19: {a: street}}",
            "received the class 'street'; expected",
        ),
        ("classes: {a: [1, 2, 3]}\nto: {cityscapes19: {a: [road, road]}}", "expected each class once"),
        ("classes: {a: [1, 2, 3]}\nto: {cityscapes19: {}}", "received nothing for 'a'"),
        ("classes: {road: [1, 2, 3]}\nfrom: {bdd18: {}}", "received nothing for 'sidewalk'"),
        ("classes: {a: [1, 2, 3]}\nlabel_ids: {b: 4}", "key 'label_ids.b': received the class 'b'"),
        ("classes: {a: [1, 2, 3], b: [1, 1, 1]}\nlabel_ids: {a: 4, b: 4}", "key 'label_ids': .*distinct ids"),
        ("classes: {a: [1, 2, 3]}\nunlabelled_ids: [0]", "key 'unlabelled_ids': received 0, the id of class 'a'"),
        ("a list", "expected a mapping"),
    ],
)
def test_a_mistake_names_file_key_and_expectation(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"own\.yaml: .*{says}|own\.yaml: {says}"):
        load_class_set(_write(tmp_path, text))


def test_references_to_no_class_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: no such file"):
        load_class_set(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"expected one of autoware16, bdd18, .*, or a path that ends in \.yaml"):
        load_class_set("cityscapes")
    with pytest.raises(ConfigError, match="'bdd18' is the key of a shipped class set"):
        load_class_set(_write(tmp_path, OWN, "bdd18.yaml"))


def test_names_and_colours_of_shipped_sets_are_distinct() -> None:
    for classes in map(load_class_set, shipped_keys()):
        assert len({*classes.colors_rgb, (0, 0, 0)}) == len(classes) + 1  # black is unlabelled
        assert np.unique(list(classes.file_ids)).tolist() == list(range(len(classes.file_ids)))
