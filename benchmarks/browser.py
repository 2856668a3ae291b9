"""A headless Chromium under selenium, for what only a browser can tell: the benchmark of the page, and its tests."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

#: quiet, and without anything that a browser does besides showing the page
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)


def missing() -> str:
    """What is not there to open a page with; "" if all is."""
    if importlib.util.find_spec("selenium") is None:
        return "there is no selenium here: pip install selenium"
    if _browser() is None or shutil.which("chromedriver") is None:
        return "there is no Chromium with chromedriver here (on Debian: apt install chromium chromium-driver)"
    return ""


def chromium(folder: Path) -> Any:
    """A driver whose browser keeps its profile in `folder`; the caller quits it."""
    webdriver: Any = importlib.import_module("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = _browser()
    for argument in (*OPTIONS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=shutil.which("chromedriver")))


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
