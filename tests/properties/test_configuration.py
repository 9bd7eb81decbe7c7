# SPDX-License-Identifier: Apache-2.0
"""Properties of the YAML reader, of bundle.yaml and of the node's parameters: everything is read or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("hypothesis")
pytest.importorskip("onnx")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import tiny_manifest

from nightlab_core.config import checked
from nightlab_core.runtime.bundle import Manifest
from nightlab_core.yaml_files import ConfigError, read_yaml, to_yaml
from nightlab_ros.parameter_server import ParameterError, change
from nightlab_ros.parameters import NodeSettings

SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([10**400, -1, 65536])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
)
#: Texts that look like other things in YAML: numbers, dates, booleans, lists, comments.
LOOKS = st.sampled_from(["1e5", "yes", "2026-01-31", "~", "null", ""])
PLAIN = (
    LOOKS
    | st.text("0123456789eE.-+_:#[]{}!&* \"'ony~<=é中", max_size=9)
    | st.sampled_from(["1e5", "yes", "2026-01-31", ""])
)


@SAME_FOLDER
@given(st.binary(max_size=200) | st.text("[]{}:,-?&*!|>'\"#%@ \n\tab0.", max_size=200).map(str.encode))
def test_any_bytes_are_a_mapping_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.yaml").write_bytes(content)
    try:
        assert isinstance(read_yaml(tmp_path / "file.yaml"), dict)
    except ConfigError as error:
        assert "file.yaml" in str(error)


@SAME_FOLDER
@given(st.dictionaries(PLAIN, st.lists(PLAIN | st.integers(-(10**9), 10**9) | st.booleans(), max_size=4), max_size=5))
def test_what_is_written_is_read_back(tmp_path: Path, data: dict[str, Any]) -> None:
    (tmp_path / "file.yaml").write_text(to_yaml(data), encoding="utf-8")
    assert read_yaml(tmp_path / "file.yaml") == data


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in nested lists and mappings."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


MANIFEST = tiny_manifest().model_dump(mode="json")
PLACES = places(MANIFEST)[1:]


@given(st.sampled_from(PLACES), VALUES)
def test_any_value_anywhere_in_a_manifest_is_taken_or_refused_with_its_key(place: tuple[Any, ...], value: Any) -> None:
    data = yaml.safe_load(yaml.safe_dump(MANIFEST))
    *parents, last = place
    owner = data
    for key in parents:
        owner = owner[key]
    owner[last] = value
    try:
        manifest = checked(data, Manifest, "bundle.yaml")
    except ConfigError as error:
        assert str(error).startswith("bundle.yaml: ")
    else:
        assert manifest.format == 1 and type(manifest.format) is int
        for file in (manifest.engines.image, manifest.engines.hardness, manifest.engines.region):
            assert file.input_hw[0] * file.input_hw[1] <= 1 << 23
            assert not any(side % file.multiple for side in file.input_hw)


@given(st.dictionaries(st.sampled_from([*NodeSettings.model_fields, "unknown"]), VALUES, max_size=3), st.booleans())
def test_parameters_are_taken_or_refused_with_their_name(values: dict[str, Any], configured: bool) -> None:
    before = NodeSettings()
    try:
        after = change(before, values, configured)
    except ParameterError as error:
        assert any(name in str(error) for name in values)
    else:
        assert NodeSettings.model_validate(after.model_dump()) == after
    assert before == NodeSettings()
