# SPDX-License-Identifier: Apache-2.0
"""Nothing that is loaded can run code: the vehicle's path knows no pickle, and training loads weights only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALL = ("nightlab_core", "nightlab_replay", "nightlab_ros", "nightlab_cli", "training")
#: Modules whose readers run code that a file names.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
YAML_LOADERS = {"load", "load_all", "unsafe_load", "full_load", "safe_load", "unsafe_load_all", "full_load_all"}


@lru_cache
def trees(folder: str) -> list[tuple[str, ast.Module]]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in files]


def imported(tree: ast.Module) -> set[str]:
    """The first part of every imported name, also inside of functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call, with its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def calls_in(*folders: str) -> Iterator[tuple[str, str, ast.Call]]:
    """Every call in the folders: file and line, dotted name, and the call."""
    for folder in folders:
        for path, tree in trees(folder):
            yield from ((f"{path}:{call.lineno}", name, call) for name, call in calls(tree))


def keyword(call: ast.Call, name: str) -> object:
    """The constant of a keyword argument, or None."""
    value = next((k.value for k in call.keywords if k.arg == name), None)
    return value.value if isinstance(value, ast.Constant) else None


@pytest.mark.parametrize("folder", ALL)
def test_no_module_imports_a_reader_that_runs_code(folder: str) -> None:
    found = {path: names for path, tree in trees(folder) if (names := imported(tree) & FORBIDDEN_MODULES)}
    assert not found


def test_no_text_is_run_as_code() -> None:
    assert not [place for place, name, _ in calls_in(*ALL) if name in FORBIDDEN_CALLS]


def test_numpy_never_loads_objects() -> None:
    loads = [call for _, name, call in calls_in(*ALL) if name in ("np.load", "numpy.load")]
    assert not [call.lineno for call in loads if keyword(call, "allow_pickle") not in (None, False)]


def test_torch_loads_weights_only() -> None:
    loads = [(place, keyword(call, "weights_only")) for place, name, call in calls_in(*ALL) if name == "torch.load"]
    assert loads, "no call found: the test looks for the wrong name"
    assert not [place for place, weights_only in loads if weights_only is not True]


def test_yaml_is_read_in_one_place() -> None:
    readers = {f"yaml.{name}" for name in YAML_LOADERS}
    found = {place.split(":")[0] for place, name, _ in calls_in(*ALL) if name in readers}
    assert found == {"nightlab_core/yaml_files.py"}


def test_the_scan_finds_what_it_looks_for() -> None:
    tree = ast.parse(
        "def f():\n    import pickle as p\n    from joblib import load\n    eval('1')\n    torch.load(x)\n"
    )
    assert imported(tree) >= {"pickle", "joblib"}
    assert {name for name, _ in calls(tree)} == {"eval", "torch.load"}
