# SPDX-License-Identifier: Apache-2.0
"""Open a page in a headless browser, offline, and return its text, requests, errors and width."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: Runs as root and without background traffic.
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class PageView:
    """A page as the browser shows it; widths in CSS pixels."""

    text: str  #: as laid out
    requests: list[str]  #: except the file itself and data URIs
    errors: list[str]  #: errors and warnings on the console, and uncaught exceptions
    page_width: int
    window_width: int
    broken_images: int
    unnamed_charts: int  #: SVG without a name for a screen reader


class Browser:
    """Opens pages from files."""

    def __init__(self, chromium: Any) -> None:
        self._chromium = chromium

    def open(self, page: Path, width: int = 1280, colours: str = "light") -> PageView:
        """Open a page in a new window. NIGHTLAB_SHOTS names a folder for screenshots."""
        context = self._chromium.new_context(
            viewport={"width": width, "height": 844}, color_scheme=colours, offline=True, device_scale_factor=1
        )
        requests: list[str] = []
        errors: list[str] = []
        try:
            tab = context.new_page()
            tab.on("request", lambda r: requests.append(r.url))
            tab.on("pageerror", lambda e: errors.append(str(e)))
            tab.on("console", lambda m: errors.append(m.text) if m.type in ("error", "warning") else None)
            tab.goto(page.as_uri())
            if folder := os.environ.get("NIGHTLAB_SHOTS"):
                name = f"{page.parent.name}-{page.stem}-{width}-{colours}.png"
                tab.screenshot(path=str(Path(folder) / name), full_page=True)
            return PageView(
                text=tab.inner_text("body"),
                requests=[url for url in requests if url != page.as_uri() and not url.startswith("data:")],
                errors=errors,
                page_width=tab.evaluate("document.documentElement.scrollWidth"),
                window_width=tab.evaluate("window.innerWidth"),
                broken_images=tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length"),
                unnamed_charts=tab.evaluate(
                    "[...document.querySelectorAll('svg')]"
                    ".filter(s => s.getAttribute('role') !== 'img' || !s.getAttribute('aria-label')).length"
                ),
            )
        finally:
            context.close()

    def print(self, page: Path, pdf: Path) -> None:
        """Print a page to A4."""
        tab = self._chromium.new_page()
        tab.goto(page.as_uri())
        tab.pdf(path=str(pdf), format="A4")
        tab.close()


@contextmanager
def headless_browser() -> Iterator[Browser]:
    """Start Chromium. Skips the test, with the reason, if there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements/test.txt")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no headless browser: none of {', '.join(_NAMES)} is on the PATH")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=_ARGUMENTS)
        try:
            yield Browser(chromium)
        finally:
            chromium.close()
