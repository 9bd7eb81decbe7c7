# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from nightlab_core.config import Settings, load_yaml, replace
from nightlab_core.yaml_files import ConfigError, read_yaml


class Inner(Settings):
    rate: float = 1.0
    names: tuple[str, ...] = ()


class Outer(Settings):
    inner: Inner = Inner()
    merge: Literal["replace", "confident"] = "confident"
    count: Annotated[int, Field(ge=0, le=10)] = 10
    many: dict[str, Inner] = Field(default_factory=dict)


class Needed(Settings):
    size: int


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def test_a_file_fills_the_settings(file: Path) -> None:
    file.write_text("inner: {rate: 1e-4, names: [a, b]}\ncount: 3\nmany:\n  left: {rate: 2}\n")
    settings = load_yaml(file, Outer)
    assert settings == Outer(inner=Inner(rate=0.0001, names=("a", "b")), count=3, many={"left": Inner(rate=2.0)})
    assert settings.merge == "confident"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mergee: replace", "key 'mergee': received an unknown key; did you mean 'merge'?"),
        ("inner: {rat: 1}", "key 'inner.rat': received an unknown key; did you mean 'rate'?"),
        ("inner: {zzz: 1}", "key 'inner.zzz': received an unknown key; expected one of: rate, names"),
        ("many: {left: {rat: 1}}", "key 'many.left.rat': received an unknown key; did you mean 'rate'?"),
        ("merge: max", "key 'merge': received 'max' (str); Input should be 'replace' or 'confident'"),
        ("count: 11", "key 'count': received 11 (int); Input should be less than or equal to 10"),
        ("count: '3'", "key 'count': received '3' (str); Input should be a valid integer"),
        ("count: 3.0", "key 'count': received 3.0 (float); Input should be a valid integer"),
        ("count: yes", "key 'count': received True (bool); Input should be a valid integer"),
        ("inner: {rate: .nan}", "key 'inner.rate': received nan (float); Input should be a finite number"),
        ("inner: {names: [a, 1]}", "key 'inner.names.1': received 1 (int); Input should be a valid string"),
        ("- 1", "received [1] (list), expected a mapping"),
        ("", "received None (NoneType), expected a mapping"),
        ("a: [1", "not readable as YAML"),
        ("count: 1\ncount: 2", "key 'count' is written twice"),
        ("inner: {rate: 1, rate: 2}", "key 'rate' is written twice"),
    ],
)
def test_an_invalid_value_names_file_key_and_value(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(file, Outer)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)


def test_all_errors_of_a_file_are_reported_together(file: Path) -> None:
    file.write_text("count: x\nmerge: y\nwhat: z\n")
    with pytest.raises(ConfigError) as caught:
        load_yaml(file, Outer)
    assert all(f"key '{key}'" in str(caught.value) for key in ("count", "merge", "what"))


def test_a_missing_key_and_a_missing_file(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"settings\.yaml"):
        load_yaml(file, Needed)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="key 'size': received nothing; add this key"):
        load_yaml(file, Needed)


def test_yaml_builds_no_objects(file: Path) -> None:
    file.write_text("size: !!python/object/apply:os.getpid []")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        read_yaml(file)


def bomb(levels: int) -> str:
    """Nine aliases a level: 9 ** levels values in a file of a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(30), "more than 50000 values"),
        ("a: &a " + "[" * 20 + "]" * 20 + "\nb: " + "[" * 20 + "*a" + "]" * 20, "32 levels, with aliases replaced"),
        ("a: " + "[" * 100_000, "more than 32 levels of nesting"),
        ("a: &a [*a]", "an alias inside of its own anchor"),
        ("a: &a {b: *a}", "an alias inside of its own anchor"),
        ("a: *b", "undefined alias"),
        ("a: " + "x" * (1 << 20), "received more than 1048576 bytes"),
        ("size: !!int '3'", "received the tag 'tag:yaml.org,2002:int'"),
        ("? [a]\n: 1", "received a list or mapping as a key"),
        ("a: 2026-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5000, "not readable as YAML"),
        ("a: \udcff", "not readable as YAML"),
        ("<<: {size: 1}", "not readable as YAML"),
        ("a: [" + "b," * 50_000, "more than 50000 values"),
        ("a: " + "x" * 20_001, "a text of more than 20000 characters"),
        ("a: 0x" + "f" * 99, "a number of more than 100 characters"),
    ],
)
def test_yaml_beyond_the_limits_is_refused(file: Path, text: str, message: str) -> None:
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["1:30", "1:30.5", "1" + ":59" * 5000])
def test_a_number_of_base_60_is_a_text(file: Path, text: str) -> None:
    file.write_text(f"a: {text}")
    assert read_yaml(file) == {"a": text}


def test_a_few_aliases_are_read(file: Path) -> None:
    file.write_text("inner: {names: &names [a, b]}\nmany: {left: {names: *names}, right: {names: *names}}")
    settings = load_yaml(file, Outer)
    assert settings.inner.names == settings.many["left"].names == settings.many["right"].names == ("a", "b")


@pytest.mark.parametrize("text", ["many: {2026-01-31: {}}", "inner: {names: {2026-01-31: 1}}"])
def test_a_date_as_a_key_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{file}: keys must be str")):
        load_yaml(file, Outer)


def test_settings_are_frozen_and_replaced_with_a_check() -> None:
    settings = Outer()
    with pytest.raises(ValidationError):
        settings.count = 3  # type: ignore[misc]
    changed = replace(settings, count=3)
    assert (changed.count, settings.count) == (3, 10)
    assert changed.inner is settings.inner
    with pytest.raises(ValidationError, match="less than or equal to 10"):
        replace(settings, count=11)
    with pytest.raises(ValidationError, match="Extra inputs"):
        replace(settings, counts=1)
