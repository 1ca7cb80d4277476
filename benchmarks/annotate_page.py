"""From a key to the next question on the screen, in Chromium, with many items and long completions.

Starts `posttrain annotate` on random prose, opens the page, and picks by keyboard. Each decision is timed in the page:
from the key to the first frame behind the one that shows another question (two `requestAnimationFrame`s). The decision
is on disk by then, since the page goes on after the server's answer alone; the next question was fetched ahead.

    python benchmarks/annotate_page.py
    python benchmarks/annotate_page.py --items 100 --decisions 20

Needs what `make test-browser` installs. What must hold on a quiet machine: 95 % within 100 ms; it is told, and no exit
code depends on it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

BROWSER = Path(__file__).resolve().parent.parent / "tests" / "browser"
QUIET_S = 0.25  # the page ignores keys for 150 ms after a new question: a person reads first
CLAIM_MS = 100.0

# Asked from outside, the clock of another process would be in it: the page itself looks at each frame.
TIMED = """async () => {
  const shown = () => document.getElementById("prompt").textContent;
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const before = shown(), began = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "1", code: "Digit1", bubbles: true }));
  for (let i = 0; shown() === before && i < 600; i++) await frame();
  await frame();
  return performance.now() - began;
}"""


def main() -> int:
    options = _options()
    sys.path.insert(0, str(BROWSER))
    from conftest import Browser, Driver, missing

    lacking = missing()
    if lacking:
        print(f"error: {'; '.join(lacking)}\n\nhint: make test-browser", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder) / "rows.jsonl", options.items, options.chars)
        began = time.perf_counter()
        server, url = start(Path(folder))
        try:
            ready_s = time.perf_counter() - began
            driver = Driver()
            page = Browser(driver).open(url)
            times_ms = decided(page, options.decisions)
            driver.close()
        finally:
            server.terminate()
            server.communicate(timeout=60)
    times_ms.sort()
    results = {
        "items": options.items, "completions": 3, "chars": options.chars, "decisions": len(times_ms),
        "median_ms": statistics.median(times_ms), "p95_ms": times_ms[int(0.95 * len(times_ms))], "max_ms": times_ms[-1],
        "ready_s": ready_s, "claim_ms": CLAIM_MS, "chromium": driver.version, "load": load(),
    }  # fmt: skip
    print(json.dumps(results, indent=1))
    print(f"written: {record.write('annotate_page', results, options.out)}", file=sys.stderr)
    return 0


def write_rows(file: Path, items: int, chars: int) -> None:
    """Write rows of a prompt and three completions of prose."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(2000)]
    with file.open("w", encoding="utf-8") as lines:
        for i in range(items):
            texts = []
            for k in range(3):
                text = " ".join(chance.choices(words, k=chars // 6))
                texts.append(f"{i}.{k} " + re.sub(r"((?:\S+ ){60})", r"\1\n\n", text)[: chars - 8])
            lines.write(
                json.dumps({"prompt": f"Question {i}: {' '.join(texts[0].split()[:12])}?", "completions": texts}) + "\n"
            )


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command, and wait until it says where it is."""
    command = [sys.executable, "-m", "posttrain_plugins", "annotate", "rows.jsonl", "--port", "0"]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"http://\S+", line):
            return server, found[0]
    raise SystemExit(f"error: the server ended with {server.wait()}")


def decided(page: Any, count: int) -> list[float]:
    """Decide, and return how long each took until the next question was there, in ms."""
    page.wait("#start")
    page.call("fill", "#name", "script")
    page.press("Enter")
    page.wait("#question")
    times = []
    for _ in range(count + 1):
        time.sleep(QUIET_S)
        times.append(float(page.evaluate(TIMED)))
    return times[1:]  # the first one warms up


def load() -> float:
    """Return how many processes wanted a core over the last minute, the benchmark's own among them."""
    return float(Path("/proc/loadavg").read_text().split()[0]) if Path("/proc/loadavg").exists() else 0.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--chars", type=int, default=20_000, help="of each of the three completions")
    parser.add_argument("--decisions", type=int, default=200)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of annotate_page.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
