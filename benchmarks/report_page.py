"""What a report costs: seconds to write it, its size, and what a browser needs to draw it; a small and a large run.

The large run has three trainings of 10,000 steps and 20 figures, 50,000 rollouts and 200 search traces. Written are the
first page, which reads everything, and a second one, which reads what is new. Drawing is taken from a Chromium with
`tests/browser`'s packages, where they are: the main thread's work from opening the file until the page has settled.

    python benchmarks/report_page.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))

from made_runs import Made, make  # noqa: E402

from posttrain_plugins.report.page import write_whole  # noqa: E402
from posttrain_plugins.report.run_page import REPORT, RunPage  # noqa: E402

PROBLEMS = 1_000
LARGE = Made(
    scores={
        "base": [0.0] * PROBLEMS,
        "sft": [1.0] * 400 + [0.0] * 600,
        "grpo": [0.0] * 20 + [1.0] * 980,
    },
    steps=10_000,
    figures=17,  # with loss, learning rate and memory 20
    rollouts=50_000,
    traces=200,
)
DRAW = """
import { createRequire } from "node:module";
const { chromium } = createRequire(process.argv[2])("playwright-core");
const args = process.getuid() === 0 ? ["--no-sandbox"] : [];
const browser = await chromium.launch({ executablePath: process.argv[3], args });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
const session = await page.context().newCDPSession(page);
await session.send("Performance.enable", { timeDomain: "threadTicks" });
await page.goto(process.argv[4]);
await page.waitForTimeout(1000);
const { metrics } = await session.send("Performance.getMetrics");
const found = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
found.drawn_ms = Number(await page.evaluate(() => document.documentElement.dataset.drawn));
console.log(JSON.stringify(found));
await browser.close();
"""


def main() -> int:
    options = _options()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, made in (("small", Made()), ("large", LARGE)):
            folder = make(Path(scratch) / name, made)
            results[name] = measure(folder, options.repeats)
            shown = {key: value for key, value in results[name].items() if key != "drawn"}
            print(f"{name}: {shown}, drawn {results[name]['drawn']}", file=sys.stderr)
    print(record.write("report_page", {"repeats": options.repeats, "runs": results}, options.out))
    return 0


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Return medians: seconds of this thread's work and on the clock, bytes, and what drawing takes."""
    first, again = [], []
    for _ in range(repeats):
        page = RunPage(folder)
        first.append(timed(page, folder / REPORT))
        again.append(timed(page, folder / REPORT))
    size = (folder / REPORT).stat().st_size
    return {"first": middle(first), "again": middle(again), "bytes": size, "drawn": drawn(folder / REPORT)}


def timed(page: RunPage, file: Path) -> dict[str, float]:
    """Write a page and return the seconds that it took."""
    wall, work = time.perf_counter(), time.thread_time()
    write_whole(file, page.html())
    return {"wall_s": time.perf_counter() - wall, "work_s": time.thread_time() - work}


def middle(taken: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: round(statistics.median(one[name] for one in taken), 3) for name in taken[0]}


def drawn(file: Path) -> dict[str, float] | None:
    """Return what a Chromium needs for a page; None where there is none."""
    import shutil

    browser, package = shutil.which("chromium"), TESTS / "browser/node_modules/playwright-core"
    if browser is None or not package.is_dir() or shutil.which("node") is None:
        return None
    script = file.with_name("draw.mjs")
    script.write_text(DRAW, encoding="utf-8")
    command = ["node", str(script), str(TESTS / "browser/package.json"), browser, file.as_uri()]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    names = {"work_s": "TaskDuration", "script_s": "ScriptDuration", "layout_s": "LayoutDuration"}
    return {**{name: round(found[key], 3) for name, key in names.items()}, "opened_ms": found["drawn_ms"]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
