# SPDX-License-Identifier: Apache-2.0
"""The command `nightlab`: help, errors, exit statuses, completion, and what it imports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import nightlab
from pydantic import ValidationError

from nightlab_cli import bag as bag_command
from nightlab_cli.main import COMMANDS, app, load_command
from nightlab_core.runtime.settings import PipelineSettings

ROOT = Path(__file__).parents[2]
NAMES = [*COMMANDS, *(f"engine {name}" for name in ("build", "list", "verify", "clean"))]
#: What `nightlab --help` may import beside the standard library.
LIGHT = {"typer", "shellingham", "annotated_doc", "nightlab_cli", "ros_wheels_bootstrapper"}


def test_help_imports_only_typer() -> None:
    """An import of a library would be felt: `nightlab --help` has to answer in under half a second."""
    code = """
import json, runpy, sys
sys.argv = ["nightlab", "--help"]
before = set(sys.modules)
try:
    runpy.run_module("nightlab_cli", run_name="__main__")
except SystemExit as stopped:
    assert stopped.code == 0
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, last = done.stdout.splitlines()
    assert any("Segment night driving images" in line for line in shown)
    assert set(json.loads(last)) - set(sys.stdlib_module_names) - LIGHT == set()


def test_help_lists_every_command_in_one_line_each() -> None:
    done = nightlab("--help")
    assert done.status == 0
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", done.out, re.MULTILINE), name


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_fits_80_columns_and_explains_every_option(name: str) -> None:
    done = nightlab(*name.split(), "--help")
    assert done.status == 0 and f"Usage: nightlab {name} " in done.out
    assert max(map(len, done.out.splitlines())) <= 80 and "..." not in done.out.partition("Options:")[2]
    for parameter in _command(name).params:
        assert getattr(parameter, "help", ""), f"{name}: {parameter.name}"


def _command(name: str) -> Any:
    first, *rest = name.split()
    command = load_command(first)
    return command.commands[rest[0]] if rest else command


def test_an_option_has_one_form_in_all_commands() -> None:
    """The same name takes the same kind of value, in lower case with hyphens."""
    forms: dict[str, set[tuple[str, bool]]] = {}
    for name in NAMES:
        for parameter in _command(name).params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                shown = parameter.metavar or "<"
                form = "a choice" if shown.startswith("<") else shown
                forms.setdefault(option, set()).add((form, bool(getattr(parameter, "is_flag", False))))
    assert all(re.fullmatch(r"--[a-z]+(-[a-z]+)*|-[a-z]", option) for option in forms), sorted(forms)
    assert {option: form for option, form in forms.items() if len(form) > 1} == {}
    assert {"--bundle", "--out", "--engine", "--precision", "--classes", "--topic", "--labels", "-v"} <= set(forms)


def test_an_unknown_command_or_option_is_wrong_usage() -> None:
    done = nightlab("demoo")
    assert done.status == 2 and "Did you mean 'demo'?" in done.err
    done = nightlab("bag", "source", "--out", "bag", "--colour", "blue")
    assert done.status == 2 and "No such option: --colour" in done.err
    assert nightlab("bag", "source", "--out", "bag", "--classes", "nocturne").status == 2


def wrong_setting() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        PipelineSettings(max_regions=99)
    return caught.value


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("received 3, expected 4"), 1, "nightlab bag: received 3, expected 4\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            1,
            "nightlab bag: x: No such file or directory\n",
        ),
        (wrong_setting(), 1, "nightlab bag: max_regions: received 99, Input should be less than or equal to 10\n"),
        (KeyError("no class 'tram'"), 1, "nightlab bag: no class 'tram'\n"),
        (
            ModuleNotFoundError("No module named 'apsw'", name="apsw"),
            1,
            "module apsw is missing; in NightLab's",
        ),
        (AttributeError("x"), 1, "nightlab bag: AttributeError: x (a fault of NightLab; the option -v shows where)"),
        (KeyboardInterrupt(), 130, "nightlab bag: interrupted\n"),
    ],
)
def test_an_error_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, said: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(bag_command, "open_frames", fail)
    done = nightlab("bag", "source", "--out", "bag")
    assert done.status == status and said in done.err and len(done.err.splitlines()) == 1
    done = nightlab("bag", "source", "--out", "bag", "--verbose")
    assert done.status == status and said in done.err
    assert ("Traceback" in done.err) == isinstance(error, Exception)


def test_without_torch_export_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")  # without it, the error names onnx
    for name in [name for name in sys.modules if name.startswith("nightlab_core.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    done = nightlab("export", "x.pt", "--out", "bundle", "--input", "images")
    assert done.status == 1
    assert (
        done.err
        == "nightlab export: the Python module torch is missing; in NightLab's repository: pip install '.[train]'\n"
    )


def test_without_the_repository_evaluate_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "training"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "training", None)
    done = nightlab("evaluate", "bundle", "--data", "data", "--dataset", "camvid/val")
    assert done.status == 1 and "the Python module training" in done.err
    assert "in NightLab's repository" in done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("nightlab re", {"replay"}),
        ("nightlab engine ", {"build", "list", "verify", "clean"}),
        ("nightlab bag --st", {"--storage"}),
    ],
)
def test_the_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, expected: set[str]
) -> None:
    monkeypatch.setenv("_NIGHTLAB_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    monkeypatch.setattr(sys, "argv", ["nightlab"])
    with pytest.raises(SystemExit):
        app(prog_name="nightlab")
    assert set(capsys.readouterr().out.split()) == expected


@pytest.mark.parametrize(
    "words",
    [
        ("demo",),
        ("replay", "BAG"),
        ("replay", "BAG", "--restart", "--write-bag"),
        ("compare", "A", "B"),
        ("benchmark",),
        ("bag", "SOURCE"),
        ("export", "CHECKPOINT", "--input", "IMAGES"),
    ],
    ids=" ".join,
)
def test_no_command_touches_a_folder_of_the_user(tmp_path: Path, words: tuple[str, ...]) -> None:
    own = {
        name: tmp_path / name for name in ("overlays/mine.jpg", "chunks/a-00000000.npz", "bundle.yaml", "report.html")
    }
    for path in own.values():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    done = nightlab(*words, "--out", tmp_path)
    assert done.status in (1, 2) and len(done.err.splitlines()) == 1, done
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == set(own)
    assert {path.read_bytes() for path in own.values()} == {b"mine"}
