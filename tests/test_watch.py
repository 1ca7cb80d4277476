"""`posttrain watch`: what it shows of a run that others write, at every size of terminal, and what it never does."""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import math
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, ConsoleDimensions

from posttrain_plugins.cli.options import run_folder
from posttrain_plugins.cli.run_display import RunDisplay
from posttrain_plugins.cli.sparkline import sparkline
from posttrain_plugins.cli.stage_table import StageLine, StageTable
from posttrain_plugins.cli.watch_view import RunView
from posttrain_plugins.errors import InputError
from posttrain_plugins.record.events import EventFile
from posttrain_plugins.record.figures import FiguresFile
from posttrain_plugins.record.lines import json_line
from posttrain_plugins.record.pace import pace
from posttrain_plugins.record.rollouts import newest
from posttrain_plugins.record.runs import read_run

HOSTILE = "[red]x[/red] \x1b[31m\x1b[2J\r\x07\t\u202e \U0001f600\ud800 " + "long " * 20_000
KEY = "0123456789ab" + "0" * 52


class Made:
    """A run as its files tell it, of which a test decides how far it is."""

    def __init__(self, folder: Path, stages: int = 3) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.ids = [f"loop.{i}.rl" for i in range(stages)]
        rows = [
            {
                "id": id,
                "use": "grpo",
                "makes": "model",
                "key": KEY,
                "from": [],
                "start": None,
                "cached": i == 0,
                "wanted": True,
                "reasons": ["never run"],
                "folder": None,
            }
            for i, id in enumerate(self.ids)
        ]
        self.events = EventFile(folder, folder.name, rows, pytest.fail)

    def finish(self, *ids: str) -> None:
        for id in ids:
            self.events.write("started", stage=id, resumed_from=None)
            self.events.write("finished", stage=id, cached=False, folder=None)

    def train(
        self, id: str, steps: int, total: int = 60, step_s: float = 2.0, ago: float = 0.0, rewards: Any = ("right",)
    ) -> Path:
        """Write so many steps, the last of them `ago` seconds old."""
        self.events.write("started", stage=id, resumed_from=None)
        stage = self.folder / f".{id}-{KEY[:12]}.partial"
        stage.mkdir()
        lines = []
        for step in range(1, steps + 1):
            figures = {"loss": 2.0 / step, "reward": step / 100, **{f"rewards/{n}/mean": step / 50 for n in rewards}}
            figures |= {f"rewards/{n}/std": 0.1 for n in rewards}
            at = time.time() - ago - (steps - step) * step_s
            lines.append(
                json_line({"step": step, "total": total, "seconds": step * step_s, "at": at, "figures": figures})
            )
        (stage / "figures.jsonl").write_text("".join(lines))
        return stage

    def sample(self, stage: Path, step: int, texts: list[str], prompt: Any = "1+1", rewards: Any = None) -> None:
        with (stage / "rollouts.jsonl").open("a", encoding="utf-8", errors="replace") as file:
            for i, text in enumerate(texts):
                scores = {"right": float(i)} if rewards is None else rewards
                row = {"prompt": prompt, "completion": text, "global_step": step, "rewards": scores}
                file.write(json.dumps({**row, "weighted_reward": float(i)}) + "\n")

    def kill(self) -> None:
        """Leave the file as a killed process does."""
        self.events.close()
        file = self.folder / "run.jsonl"
        first, _, rest = file.read_text().partition("\n")
        file.write_text(json.dumps({**json.loads(first), "pid": 2**22 + 1}) + "\n" + rest)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Made]]:
    runs: list[Made] = []

    def make(name: str = "run", **options: Any) -> Made:
        runs.append(Made(tmp_path / "runs" / name, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.events.close()


def shown(run: Made, columns: int = 120, rows: int | None = None, completions: bool = False) -> list[str]:
    console = Console(width=columns, height=rows or 50, record=True, file=io.StringIO(), force_terminal=True)
    console.print(RunView.of(read_run(run.folder), completions, rows and rows - 1))
    return console.export_text(styles=False).splitlines()


# --- what it shows ---------------------------------------------------------------------------------------------------


def test_a_run_at_work(made: Callable[..., Made]) -> None:
    run = made()
    run.train("loop.1.rl", steps=30)
    lines = shown(run)
    assert re.match(r"run: running, 1 of 3 stages done \(1 cached\), .*pid \d+", lines[0])
    stages = [re.sub(r" {2,}", "  ", line).strip() for line in lines[1:4]]
    assert stages[0] == "✓  loop.0.rl  grpo  cached"
    assert re.search(r"loop\.1\.rl  grpo .*step 30/60, 1m 00s left  reward 0.3 loss 0.0667", stages[1])
    assert stages[2] == "·  loop.2.rl  grpo  never run"
    curves = {line.split()[0]: line for line in lines[4:7]}
    assert set(curves) == {"loss", "reward", "rewards/right"}, "no curve of a deviation"
    assert "0.0667 (0.0667 to 2)" in curves["loss"]
    assert len(re.search(r"[▁-█]+", curves["reward"])[0]) == 30  # type: ignore[index]
    assert len(lines) == 7


def test_a_killed_run_and_where_it_goes_on(made: Callable[..., Made]) -> None:
    run = made()
    stage = run.train("loop.1.rl", steps=31)
    run.kill()
    assert "stopped: at step 31, starts anew" in "\n".join(shown(run))
    for step in (20, 30):
        (stage / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
        (stage / f"checkpoints/checkpoint-{step}/complete").touch()
    (stage / "checkpoints/checkpoint-31").mkdir()  # it was being written
    lines = shown(run)
    assert lines[0].startswith("run: stopped, 1 of 3")
    assert "stopped: at step 31, goes on from 30" in "\n".join(lines)


def test_a_failed_run_says_why(made: Callable[..., Made]) -> None:
    run = made()
    run.train("loop.1.rl", steps=3)
    run.events.write("failed", stage="loop.1.rl", message="loss is nan\nat step 3", hint="lower it", stopped=False)
    run.events.write("ended", state="failed", message="loss is nan", hint="lower it")
    assert "failed: at step 3, starts anew: loss is nan at step 3" in "\n".join(shown(run))


def test_a_run_that_waits_for_a_person(made: Callable[..., Made]) -> None:
    run = made()
    told = "stage 'loop.1.rl' waits for a person: 137 of 200"
    run.events.write("started", stage="loop.1.rl", resumed_from=None)
    run.events.write("failed", stage="loop.1.rl", message=told, hint="h", stopped=False, waits="137 of 200")
    run.events.write("ended", state="waiting", message=told, hint="h")
    lines = shown(run)
    assert lines[0].startswith("run: waiting")
    assert re.search(r"\?  +loop\.1\.rl .* waits for a person: 137 of 200", lines[2])


@pytest.mark.parametrize(("ago", "is_quiet"), [(59.0, False), (61.0, True), (240.0, True)])
def test_a_stage_that_says_nothing(made: Callable[..., Made], ago: float, is_quiet: bool) -> None:
    """Steps of 30 s: told before three of them are over."""
    run = made()
    run.train("loop.1.rl", steps=10, step_s=30.0, ago=ago)
    text = "\n".join(shown(run))
    assert ("no step for" in text) == is_quiet
    if ago == 240.0:
        assert "no step for 4m 00s (median 30s)" in text


def test_what_is_left_is_by_the_last_steps(made: Callable[..., Made]) -> None:
    """The first step compiles for ten minutes; what follows takes a second."""
    points = [(1, 600.0), *((step, 600.0 + step) for step in range(2, 40))]
    found = pace(points, 100, 639.0)
    assert found is not None
    assert (found.median_s, found.left_s) == (1.0, 61.0)
    assert pace(points[:1], 100, 0.0) is None
    assert pace([(5, 1.0), (5, 2.0)], None, 2.0) is None
    several = pace([(0, 0.0), (4, 2.0)], None, 2.0)
    assert several is not None
    assert (several.median_s, several.left_s) == (0.5, None)
    # an evaluation says the same problem again with other figures; a resume begins further back
    again = pace([(0, 0.0), (0, 40.0), (100, 50.0), (100, 60.0)], 400, 60.0)
    resumed = pace([(7, 0.0), (8, 1.0), (5, 30.0), (6, 32.0)], 9, 32.0)
    assert again is not None
    assert resumed is not None
    assert (again.median_s, again.left_s) == (0.5, 150.0)
    assert (resumed.median_s, resumed.left_s) == (1.5, 4.5)


def test_seconds_of_the_whole_run_where_all_has_run_before(made: Callable[..., Made]) -> None:
    run = made()
    run.train("loop.1.rl", steps=30)
    assert "about" not in shown(run)[0]
    (run.folder / "latest/loop.2.rl").mkdir(parents=True)
    (run.folder / "latest/loop.2.rl/manifest.json").write_text(json.dumps({"key": "k", "seconds": 60.0}))
    assert "about 2m 00s left" in shown(run)[0]


def test_what_looks_ill_is_told(made: Callable[..., Made]) -> None:
    run = made()
    stage = run.train("loop.1.rl", steps=30)
    text = (stage / "figures.jsonl").read_text().replace('"loss"', '"completions/clipped_ratio": 0.9, "loss"')
    (stage / "figures.jsonl").write_text(text)
    assert any("bad: health: completions are cut at the limit" in line for line in shown(run))


def test_figures_that_are_no_numbers(made: Callable[..., Made]) -> None:
    run = made()
    stage = run.train("loop.1.rl", steps=3)
    text = (stage / "figures.jsonl").read_text().replace('"reward": 0.03', '"reward": null')
    (stage / "figures.jsonl").write_text(text)
    assert "reward 0.02 (0.01 to 0.02)" in re.sub(r"\s*[▁-█]+\s*", " ", "\n".join(shown(run)))


def test_a_curve_in_one_line() -> None:
    assert sparkline([1.0, 2.0, 3.0], 30) == "▁▅█"
    assert sparkline([math.nan, 1.0, math.inf, 1.0], 4) == " ▁ ▁"
    assert sparkline([math.nan] * 3, 30) == "   "
    assert len(sparkline([float(i) for i in range(1000)], 30)) == 30
    assert sparkline([float(i) for i in range(1000)], 30)[0::29] == "▁█"


# --- completions -----------------------------------------------------------------------------------------------------


def test_completions_newest_best_worst_changed(made: Callable[..., Made]) -> None:
    run = made()
    stage = run.train("loop.1.rl", steps=30)
    assert "no completions yet" in "\n".join(shown(run, completions=True))
    run.sample(stage, 0, ["three", "four"])
    run.sample(stage, 29, ["worst one", "two", "best one"])
    text = "\n".join(shown(run, completions=True))
    assert "sampled after step 29, 3 completions" in text
    told = dict(re.findall(r"^   (best|worst|newest|changed: after step \d+) .*\n {5}(.*?)\s*$", text, re.M))
    assert told == {
        "best": "best one",
        "worst": "worst one",
        "newest": "best one",
        "changed: after step 0": "three",
        "changed: after step 29": "worst one",
    }
    assert "best one" not in "\n".join(shown(run)), "only when it is asked for"


def test_only_the_end_of_a_large_file_is_read(made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.record import rollouts

    run = made()
    stage = run.train("loop.1.rl", steps=3)
    for step in range(40):
        run.sample(stage, step, [f"{step} " + "x" * 5000] * 4)
    read: list[int] = []
    monkeypatch.setattr(rollouts, "MOST_BYTES", 40_000)
    monkeypatch.setattr(rollouts, "BLOCK", 1000)
    found = newest(stage / "rollouts.jsonl")
    assert found is not None
    assert (found.step, [row["completion"].split()[0] for row in found.rows]) == (39, ["39"] * 4)
    assert read == []
    with (stage / "rollouts.jsonl").open("a") as file:
        file.write('{"global_step": 40, "prompt"')  # being written
    assert (newest(stage / "rollouts.jsonl") or found).step == 39


def test_a_hostile_text_neither_colours_nor_moves_the_cursor(made: Callable[..., Made]) -> None:
    run = made("run")
    stage = run.train("loop.1.rl", steps=3, rewards=("[red]", "\x1b[31m"))
    run.sample(stage, 2, [HOSTILE], rewards={"[bold]\x1b[2J": 1.0})
    run.events.write("failed", stage="loop.1.rl", message=HOSTILE, hint=None, stopped=False)
    lines = shown(run, columns=80, rows=30, completions=True)
    text = "\n".join(lines)
    assert len(lines) <= 29
    assert "[red]x[/red] \\x1b[31m\\x1b[2J\\x0d\\x07\\t\\u202e" in text
    assert "rewards/[red]" in text
    assert "[bold]\\x1b[2J 1" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


# --- every size of terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 20, 39])
def test_no_more_lines_than_there_are(made: Callable[..., Made], at: int) -> None:
    run = made(stages=40)
    run.finish(*run.ids[1:at])
    stage = run.train(run.ids[at], steps=30, rewards=tuple(f"a_reward_with_a_name_{i}" for i in range(8)))
    run.sample(stage, 29, [HOSTILE] * 3)
    for rows, columns in itertools.product((3, 6, 10, 24, 40), (20, 40, 80, 120)):
        lines = shown(run, columns, rows, completions=True)
        assert len(lines) <= rows - 1, (rows, columns)
        assert all(len(line) <= columns for line in lines), (rows, columns)
        text = "\n".join(lines)
        assert run.ids[at][:7] in text, "what runs is always there"
        if rows >= 10:
            assert "▁" in text
        if rows >= 10 and at == 20:
            assert "stages done" in text
            assert "stages to come" in text


@pytest.mark.parametrize("rows", range(1, 12))
@pytest.mark.parametrize(
    "states", ["d" * 40, "d" * 20 + "r" + "w" * 19, "r" + "w" * 39, "d" * 39 + "f", "w" * 40, "dw"]
)
def test_stages_fold(rows: int, states: str) -> None:
    names = {"d": "done", "r": "runs", "w": "waits", "f": "failed"}
    lines = [StageLine(f"s{i}", "sft", state=names[state]) for i, state in enumerate(states)]
    above, middle, below = StageTable(lines, rows).folded()
    if rows >= 3 or len(lines) <= rows:
        assert [*above, *middle, *below] == lines
    assert bool(above) + len(middle) + bool(below) <= rows
    active = [line for line in lines if line.state in ("runs", "failed")]
    assert all(line in middle for line in active)
    console = Console(width=60, height=50, record=True, file=io.StringIO())
    console.print(StageTable(lines, rows))
    assert len(console.export_text().splitlines()) <= rows


def test_the_display_of_a_run_is_no_higher_than_the_terminal() -> None:
    from types import SimpleNamespace

    stages = [
        SimpleNamespace(
            id=f"loop.{i}.sft",
            is_wanted=True,
            must_run=True,
            reasons=("never run",),
            spec=SimpleNamespace(parents=lambda: ("base",), plugin=SimpleNamespace(name="sft")),
        )
        for i in range(40)
    ]
    console = Console(width=60, height=10, file=io.StringIO(), force_terminal=True)
    display = RunDisplay(console)
    display.planned(SimpleNamespace(stages=stages, recipe=SimpleNamespace(name="r")))  # type: ignore[arg-type]
    display.started(stages[20], None)  # type: ignore[arg-type]
    display.progress(stages[20], 3, 9, "step", {"loss": 1.0})  # type: ignore[arg-type]
    assert len(console.render_lines(display._table())) <= 9
    display.note(stages[20], "read [this]\x1b[2J")  # type: ignore[arg-type]
    display.note(stages[21], "read [this]\x1b[2J")  # type: ignore[arg-type]
    console.size = ConsoleDimensions(40, 20)
    display.progress(stages[20], 4, 9, "step", {"loss": 1.0})  # type: ignore[arg-type]
    text = console.file.getvalue()  # type: ignore[attr-defined]
    before, _, after = text.partition("\x1b[2J")
    assert before.count("read [this]\\x1b[2J") == 1, "once, and not as the terminal would take it"
    assert after.count("read [this]\\x1b[2J") == 1, "the screen is drawn anew, what was to be read with it"
    display.close()


# --- as a user types it ----------------------------------------------------------------------------------------------


def command(run: Made, *options: str) -> list[str]:
    return [sys.executable, "-m", "posttrain_plugins", "watch", str(run.folder), *options]


def on_a_terminal(words: list[str], rows: int, columns: int, until: Callable[[str], bool], resizes: int = 0) -> str:
    """What a command writes on a terminal of its own until a condition holds; its size is changed meanwhile."""
    master, slave = pty.openpty()

    def resize(rows: int, columns: int) -> None:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    resize(rows, columns)
    # a size in the environment, which a shell or another test may have left, goes before the terminal's own
    kept = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
    environment = {**kept, "TERM": "xterm-256color"}
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True)
    written = ""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline and not until(written):
            if select.select([master], [], [], 0.2)[0]:
                written += os.read(master, 1 << 16).decode("utf-8", "replace")
            elif resizes:
                resizes -= 1
                resize(rows + resizes % 5, columns + 7 * (resizes % 3))
    finally:
        process.terminate()
        process.wait()
        os.close(slave)
        os.close(master)
    return written


@pytest.mark.slow
def test_on_a_terminal_it_draws_and_ends_when_the_run_does(made: Callable[..., Made]) -> None:
    run = made(stages=40)
    run.train(run.ids[1], steps=30)
    ended: list[float] = []

    def until(text: str) -> bool:
        frames = text.count("run: running")
        if frames >= 3 and not ended:
            ended.append(time.monotonic())
            run.events.write("failed", stage=run.ids[1], message="oh no", hint=None, stopped=False)
            run.events.write("ended", state="failed", message="oh no", hint=None)
        return "go on with the same command" in text

    text = on_a_terminal(command(run), 10, 60, until)
    assert "run: failed" in text
    assert "\x1b[?1049h" in text, "a screen of its own, which a change of size cannot tear"
    frames = text.partition("\x1b[?1049l")[0].split("\x1b[H")[1:]
    assert len(frames) >= 3
    assert [frame for frame in frames if frame.count("\n") > 9] == [], "never more lines than the terminal has"


@pytest.mark.slow
def test_into_a_pipe_goes_no_escape_byte(made: Callable[..., Made]) -> None:
    run = made()
    stage = run.train("loop.1.rl", steps=30)
    run.sample(stage, 29, [HOSTILE])
    process = subprocess.Popen(command(run, "--completions"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    time.sleep(4)
    run.finish("loop.1.rl")
    time.sleep(2)
    run.kill()
    text = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0
    assert "run: running" in text
    assert "loop.1.rl: done" in text
    assert "run: stopped" in text
    assert "\x1b" not in text
    assert "\r" not in text


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm"}])
def test_a_terminal_without_colours_or_without_a_cursor(made: Callable[..., Made], environment: dict[str, str]) -> None:
    run = made()
    run.train("loop.1.rl", steps=30)
    words = ["env", *(f"{name}={value}" for name, value in environment.items()), *command(run)]
    text = on_a_terminal(words, 24, 80, lambda text: text.count("rewards/right") >= 1)
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in text
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", text)


@pytest.mark.slow
def test_resized_while_it_runs(made: Callable[..., Made]) -> None:
    run = made(stages=40)
    run.train(run.ids[5], steps=30)
    text = on_a_terminal(command(run), 12, 70, lambda text: text.count("run: running") >= 8, resizes=20)
    assert text.count("run: running") >= 8
    assert "Traceback" not in text


def test_json_and_a_run_that_is_done(made: Callable[..., Made], tmp_path: Path) -> None:
    run = made()
    run.train("loop.1.rl", steps=30)
    done = subprocess.run(command(run, "--json"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["state"] == "running"
    assert [(stage["state"], stage["done"]) for stage in found["stages"]] == [("cached", 0), ("runs", 30), ("waits", 0)]
    assert found["stages"][1]["left_s"] == 60.0
    assert found["stages"][1]["median_s"] == 2.0


def test_a_run_is_found_by_name_folder_and_recipe(made: Callable[..., Made], tmp_path: Path) -> None:
    run = made("mine")
    runs = tmp_path / "runs"
    (tmp_path / "file.yaml").write_text("# a recipe\nname: mine\nstages: {}\n")
    (tmp_path / "mine.yaml").write_text("stages: {}\n")
    for name in ("mine", str(run.folder), str(tmp_path / "file.yaml"), str(tmp_path / "mine.yaml")):
        assert run_folder(name, runs) == run.folder
    with pytest.raises(InputError, match="no run 'other'") as caught:
        run_folder("other", runs)
    assert caught.value.hint == "runs there: mine"


def test_it_takes_no_lock_and_writes_nothing(made: Callable[..., Made]) -> None:
    run = made()
    stage = run.train("loop.1.rl", steps=30)
    run.sample(stage, 29, ["x"])
    lock = (run.folder / f".loop.1.rl-{KEY[:12]}.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # as the store holds it while the stage is made
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.folder.rglob("*")}
    shown(run, completions=True)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.folder.rglob("*")} == before
    lock.close()


def test_figures_are_shown_while_they_are_written(tmp_path: Path, made: Callable[..., Made]) -> None:
    run = made()
    run.events.write("started", stage="loop.1.rl", resumed_from=None)
    stage = run.folder / f".loop.1.rl-{KEY[:12]}.partial"
    stage.mkdir()
    file = FiguresFile(stage, 0, pytest.fail)
    assert "loading" in "\n".join(shown(run))
    file.write(1, 60, 2.0, {"loss": 1.0})
    assert "step 1/60" in "\n".join(shown(run))
    with (stage / "figures.jsonl").open("a") as torn:
        torn.write('{"step": 2, "tot')
    assert "step 1/60" in "\n".join(shown(run))
