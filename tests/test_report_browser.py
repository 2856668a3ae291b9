"""The page in a real browser: what no parser of ours can tell.  Skipped where there is no Chromium with its driver."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reports import hostile, lost_init, many

from benchmarks.browser import chromium, missing
from racevisor.report.page import page
from racevisor.report.rounds import Rounds
from racevisor.report.whole import Report

webdriver: Any = pytest.importorskip("selenium.webdriver", reason="no selenium here: the page is not opened in a browser")
pytestmark = pytest.mark.skipif(bool(missing()), reason=f"the page is not opened in a browser: {missing()}")


class Browser:
    """One Chromium, and what the tests ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.driver = chromium(folder)
        self.driver.set_script_timeout(20)

    def open(self, name: str, html: str, address: str = "") -> None:
        """Show a page, as a file."""
        file = self.folder / f"{name}.html"
        file.write_text(html, encoding="utf-8")
        self.driver.get("about:blank")
        self.messages(), self.requests()
        self.driver.get(f"{file.as_uri()}{address}")
        self.painted()

    def painted(self) -> None:
        """Until two frames have been drawn."""
        self.driver.execute_async_script("const d = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(d));")

    def js(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript says."""
        return self.driver.execute_script(script, *arguments)

    def keys(self, *keys: str) -> None:
        """Pressed one after the other, wherever the focus is."""
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()
        self.painted()

    def text(self, selector: str) -> str:
        """What the reader sees there."""
        return str(self.js("return document.querySelector(arguments[0]).innerText", selector))

    def messages(self) -> list[str]:
        """What the console says since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What was fetched since, apart from the page itself."""
        found = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in found if one["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from selenium.common.exceptions import WebDriverException

    try:
        made = Browser(tmp_path_factory.mktemp("browser"))
    except WebDriverException:  # on a busy machine it may not come up within a minute
        made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.driver.quit()


@pytest.fixture(scope="module")
def lost() -> str:
    return page(lost_init())


def step(browser: Browser) -> str:
    return browser.text("#panel h3").split("\n")[0].split(" races")[0]


def test_the_page_draws_and_says_nothing_on_the_console_and_fetches_nothing(browser: Browser, lost: str) -> None:
    """It is opened from a mail, years later, without network."""
    browser.open("plain", lost)
    assert browser.messages() == []
    assert browser.requests() == []
    colours = browser.js(
        "const c = document.getElementById('paint'), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const s = new Set(); for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return s.size;"
    )
    assert colours > 20, "the lanes are drawn"
    assert "vcpu1's INIT is lost" in browser.text(".judged")


def test_keys_go_from_step_to_step(browser: Browser, lost: str) -> None:
    """j, k, the racing pair, the fatal step: nobody clicks through fifty steps."""
    browser.open("keys", lost, "#step=3")
    pair = lost_init().runs[0].pair
    assert step(browser) == "Step 3"
    browser.keys("j", "j", "k")
    assert step(browser) == "Step 4"
    browser.keys("n")
    assert step(browser) == f"Step {min(pair)}"
    browser.keys("n")
    assert step(browser) == f"Step {max(pair)}"
    browser.keys("k", "f")
    assert step(browser) == f"Step {max(lost_init().runs[0].broken[0].fatal)}"
    here = browser.js("document.getElementById('lanes').focus(); return location.hash")
    browser.keys("\ue013", "\ue015")  # up and down: of the same actor
    assert browser.js("return location.hash") == here
    browser.keys("2")
    assert browser.text(".runs [aria-pressed=true]").startswith("Shrunk")
    browser.keys("4")
    assert browser.text(".runs [aria-pressed=true]").startswith("With latch")
    ground = "return getComputedStyle(document.documentElement).backgroundColor"
    light = browser.js(ground)
    browser.keys("t")
    assert browser.js(ground) != light
    browser.keys("?")
    assert browser.js("return document.getElementById('help').open")
    assert browser.messages() == []


def test_a_click_on_a_mark_chooses_its_step(browser: Browser, lost: str) -> None:
    """Where the pointer is has to be where the drawing is, also when that is zoomed and scrolled."""
    browser.open("click", lost, "#step=30")
    run = lost_init().runs[0]
    browser.js("document.getElementById('in').click(); document.getElementById('lanes').scrollLeft = 200")
    browser.painted()
    lanes = browser.driver.find_element("id", "lanes")
    left, top, wide = browser.js(
        "const l = document.getElementById('lanes');"
        "return [-l.offsetWidth / 2 + 1, -l.offsetHeight / 2 + 1, parseFloat(document.getElementById('space').style.width)]"
    )
    px = (wide - 152 - 100) / len(run.events)  # see resize() and gutter()
    for event in run.events[12:20]:
        x, y = 152 + (event.n + 0.5) * px - 200, 24 + 52 * event.lane + 24
        webdriver.ActionChains(browser.driver).move_to_element_with_offset(lanes, left + x, top + y).click().perform()
        assert step(browser) == f"Step {event.n}"
        browser.js("document.getElementById('lanes').scrollLeft = 200")
        browser.painted()


def test_a_click_on_a_folded_kind_opens_it_and_another_one_folds_it(browser: Browser) -> None:
    """Eighty actors: those that matter are open, and the others are not lost."""
    browser.open("fold", page(many(40)))
    lanes = browser.driver.find_element("id", "lanes")
    left, top = browser.js("const l = document.getElementById('lanes'); return [-l.offsetWidth / 2, -l.offsetHeight / 2]")
    tall = "return parseFloat(document.getElementById('space').style.height)"
    folded = browser.js(tall)

    def opened() -> float:
        for y in range(40, 400, 26):
            webdriver.ActionChains(browser.driver).move_to_element_with_offset(lanes, left + 60, top + y).click().perform()
            if browser.js(tall) != folded:
                return float(browser.js(tall))
        raise AssertionError("nothing opens")

    assert opened() > folded + 20 * 18
    browser.js("document.getElementById('lanes').scrollTop = 0")
    browser.painted()
    webdriver.ActionChains(browser.driver).move_to_element_with_offset(lanes, left + 60, top + 24 + 15).click().perform()
    assert browser.js(tall) == folded


def test_the_address_is_a_link_to_the_step(browser: Browser, lost: str) -> None:
    """What is sent to a colleague opens where the sender was, also in the good run."""
    browser.open("link", lost, "#step=7")
    assert step(browser) == "Step 7"
    browser.keys("j")
    assert browser.js("return location.hash") == "#step=8"
    browser.js("location.hash = '#run=good&step=5'")
    browser.painted()
    assert step(browser) == "Step 5"
    assert browser.text(".runs [aria-pressed=true]").startswith("Nearest good")
    browser.open("link", lost, "#run=nonsense&step=999999999")
    assert browser.messages() == []


def test_search_finds_steps_and_filters_the_table(browser: Browser, lost: str) -> None:
    """One looks for a cell or a function, and wants its steps and no others."""
    browser.open("search", lost)
    run = lost_init().runs[0]
    wanted = [event.n for event in run.events if "mp_state" in event.words]
    browser.keys("/", "mp_state", "\ue007")
    assert browser.text("#found").endswith(f"of {len(wanted)}")
    browser.js("document.getElementById('only').click()")
    rows = browser.js("return [...document.querySelectorAll('#table tr[data-step]')].map((row) => Number(row.dataset.step))")
    assert rows == wanted
    browser.keys("\ue00c")
    assert browser.text("#found") == ""


def test_the_table_has_every_step_for_a_screen_reader_and_for_paper(browser: Browser, lost: str) -> None:
    """A canvas is silent, and it does not print."""
    browser.open("table", lost)
    assert browser.js("return document.querySelector('#table table').getAttribute('aria-rowcount')") == str(
        len(lost_init().runs[0].events) + 1
    )
    browser.js("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.js("return document.querySelectorAll('#table tr[data-step]').length") == len(lost_init().runs[0].events)
    browser.keys("j")
    assert browser.text("#now").startswith("Step ")


def test_hostile_names_are_only_text(browser: Browser) -> None:
    """A trace comes from a stranger; opening what was made of it runs nothing of his."""
    browser.open("hostile", page(hostile()))
    assert browser.messages() == []
    assert browser.requests() == []
    assert "owned" in browser.js("return document.title"), "the name is shown"
    assert browser.js("return document.title") != "owned"
    assert browser.js("return document.querySelectorAll('img').length") == 0
    assert "onerror" in browser.text("#panel")


def test_a_page_of_rounds_without_a_trace_works_as_well(browser: Browser) -> None:
    """A run in which nothing bad was met leaves a log and no trace."""
    report = Report("rounds", rounds=[Rounds("init_sipi latch/plain/tso", rounds=3, outcomes=Counter({"fine": 3}))])
    browser.open("rounds", page(report))
    browser.keys("j", "t")
    browser.js("document.getElementById('theme').click()")
    assert browser.messages() == []
    assert "3 rounds" in browser.text(".rounds")
    assert not browser.js("return document.getElementById('run').checkVisibility()")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("wide", [1280, 390])
def test_nothing_is_wider_than_the_window(browser: Browser, lost: str, scheme: str, wide: int) -> None:
    """On a telephone as well one scrolls down, not sideways; and light or dark, text stands out from its ground."""
    metrics = {"width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        browser.open("narrow", lost)
        assert browser.js("return document.documentElement.scrollWidth") <= wide
        bad, fix = browser.js("return ['.story', '.story.fix'].map((s) => document.querySelector(s).getBoundingClientRect())")
        assert (fix["left"] >= bad["right"], fix["top"] == bad["top"]) == ((True, True) if wide > 1080 else (False, False))
        ground = browser.js("return getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) < 3 * 128) == (scheme == "dark")
        low = browser.js(CONTRAST)
        assert low == [], "contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3)"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


#: texts whose contrast with what is behind them is too low
CONTRAST = """
const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const parts = (c) => c.match(/[\\d.]+/g).map(Number);
const clear = (c) => c.length === 4 && c[3] === 0;
const found = [];
for (const one of document.querySelectorAll("body *")) {
  const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !one.offsetParent || one.matches("script, style")) continue;
  let ground = one, back = parts(getComputedStyle(ground).backgroundColor);
  while (clear(back) && (ground = ground.parentElement)) back = parts(getComputedStyle(ground).backgroundColor);
  const a = light(parts(getComputedStyle(one).color)), b = light(back);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${one.tagName}.${one.className}: ${one.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
}
return found;
"""


def test_hundreds_of_lanes_are_folded_and_what_matters_is_open(browser: Browser) -> None:
    """A thousand actors do not fit; those of the fatal steps do, the others are one click away, and a filter finds any."""
    browser.open("many", page(many()))
    assert browser.messages() == []
    assert browser.js("return document.querySelectorAll('#table tr[data-step]').length") < 200, "rows in sight only"
    first = browser.js("return document.getElementById('space').style.height")
    browser.driver.find_element("id", "which").send_keys("vcpu7")
    browser.painted()
    assert browser.js("return document.getElementById('space').style.height") != first
    assert browser.messages() == []
