# SPDX-License-Identifier: Apache-2.0
"""The style that the help of all commands shares."""

from __future__ import annotations

from typing import Any

import typer


def new_app(**options: Any) -> typer.Typer:
    """Return a Typer application with plain help, which keeps to the terminal's width and can be copied."""
    settings = {
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "add_completion": False,
        "context_settings": {"help_option_names": ["--help", "-h"]},
    }
    return typer.Typer(**{**settings, **options})
