"""The page of a report: how large 10,000 steps are, and how soon a browser shows them."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.browser import chromium, missing
from benchmarks.measure import against, cpu, say
from racevisor.explore import witness
from racevisor.guard import unguarded
from racevisor.report.page import page
from racevisor.report.whole import Report, tell
from racevisor.scenario import Case, load
from racevisor.strategies.random_walk import RandomWalk

#: bytes, and milliseconds to the first paint, that are promised for 10,000 steps
BYTES, PAINT = 2_000_000, 2_000
OPENED = 5
#: JavaScript that answers with the time of the first paint, once there was one
FIRST_PAINT = """
const answer = arguments[0];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (entry.name === "first-contentful-paint") answer(entry.startTime);
}).observe({ type: "paint", buffered: true });
"""


def main() -> None:
    """A random walk of 540 vCPUs and their senders, drawn; opened several times."""
    scenario, source = load("vcpu_requests")
    case = Case(scenario, source, "before", "posted", "tso", 540)
    world = case.world(max_steps=20_000)
    world.judge = unguarded
    found = witness(world.run(RandomWalk(0, 1), 0))
    world.close()
    report = Report(title=str(case))
    made = cpu(lambda: tell(report, case, found.schedule, live=False))
    text = ""

    def write() -> None:
        nonlocal text
        text = page(report)

    written = cpu(write)
    run, size = report.runs[0], len(text.encode())
    say(f"{len(run.events):,} steps of {len(run.lanes):,} actors: worked out in {made:.2f} s, written in {written:.2f} s")
    say(f"page: {size / 1e6:.2f} MB {against(BYTES / 1e6, size / 1e6)}")
    why = missing()
    if why:
        say(f"not opened: {why}")
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "report.html"
        file.write_text(text, encoding="utf-8")
        driver = chromium(Path(folder))
        try:
            paints, drawn = [], []
            for _ in range(OPENED):
                driver.get("about:blank")
                driver.get(file.as_uri())
                paints.append(driver.execute_async_script(FIRST_PAINT))
                drawn.append(
                    driver.execute_async_script("const d = arguments[0]; requestAnimationFrame(() => d(performance.now()))")
                )
        finally:
            driver.quit()
    first = statistics.median(paints)
    say(f"first paint: {first:.0f} ms {against(PAINT, first)}; lanes drawn by {statistics.median(drawn):.0f} ms")
