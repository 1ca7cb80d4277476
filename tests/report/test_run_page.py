"""The page of a run: its figures are those of `report --json`, its texts stay texts, and it stands without a script."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import Made, make

from posttrain_plugins.record.health import health
from posttrain_plugins.record.runs import read_run
from posttrain_plugins.report.masking import masked
from posttrain_plugins.report.page import static
from posttrain_plugins.report.results_json import results_json
from posttrain_plugins.report.run_page import RunPage

VOID = {"meta", "br", "line", "circle", "rect"}


class Reader(HTMLParser):
    """What stands on a page: tags with their attributes, and the text of everything but scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.data: dict[str, Any] = {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:  # HTML lets cells be closed by what follows
            pass

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            id = self.tags[-1][1].get("id")
            if id:
                self.data[id] = json.loads(data)
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "runs/quickstart")


def read(folder: Path) -> Reader:
    return Reader(RunPage(folder).html())


def _text(html: str) -> str:
    return Reader(html).text


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_page_holds_what_json_prints(run: Path) -> None:
    found = read(run)
    assert found.data["report-data"] == json.loads(
        json.dumps(masked(results_json("quickstart", read_run(run).artifacts)))
    )


def test_every_figure_that_is_shown_is_the_manifests_own(run: Path) -> None:
    text = read(run).text
    details = json.loads((run / "latest/eval/manifest.json").read_text())["details"]
    for name, model in details["models"].items():
        measured = model["measures"]["sampled"]["rewards"]["correct"]
        assert f"{measured['mean']:.3f} [{measured['low']:.3f}, {measured['high']:.3f}]" in text, name
        for gain in model["gain"].get("measures", {}).values():
            assert f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in text, name


def test_the_sentence_says_what_is_best_and_how_surely(run: Path) -> None:
    found = re.sub(r"\s+", " ", read(run).text)
    assert "grpo is best: sampled accuracy 0.900" in found
    assert "on 20 problems" in found
    assert re.search(r"▲ \+0\.500 \[\+0\.\d+, \+0\.\d+\] over sft", found)


def test_a_gain_within_the_noise_is_called_none(tmp_path: Path) -> None:
    scores = {"base": [0.0] * 10 + [1.0] * 10, "sft": [0.0] * 9 + [1.0] * 11}
    text = read(make(tmp_path / "r", Made(scores=scores))).text
    assert re.search(r"≈ \+0\.050 \[\+0\.000, \+0\.150\] no difference over base", text)


def test_what_was_forgotten_is_in_sight_and_what_was_not_is_folded(run: Path) -> None:
    """A perplexity that rises is worse, an accuracy that falls is; whose interval holds none of both is neither."""

    def page(perplexity: Sequence[float], accuracy: Sequence[float]) -> str:
        def told(kind: str, value: float, change: Sequence[float]) -> Mapping[str, Any]:
            interval = dict(zip(("mean", "low", "high"), change, strict=True))
            one = {"mean": value, "low": value, "high": value, "over": {"base": interval}}
            return {"kind": kind, "rows": 20, "models": {"sft": one}}

        file = run / "latest/eval/manifest.json"
        manifest = json.loads(file.read_text())
        kept = {"english": told("perplexity", 20.0, perplexity), "sums": told("accuracy", 0.5, accuracy)}
        file.write_text(json.dumps({**manifest, "details": {**manifest["details"], "retain": kept}}))
        return RunPage(run).html()

    lost = page((1.2, 1.1, 1.3), (-0.2, -0.3, -0.1))
    assert "<details open><summary>eval: what is retained, 2 data sets" in lost
    text = re.sub(r"\s+", " ", _text(lost))
    assert "▼ × 1.200 [1.100, 1.300] worse, over base" in text
    assert "▼ -0.200 [-0.300, -0.100] worse, over base" in text
    held = page((1.0, 0.9, 1.1), (0.2, 0.1, 0.3))
    assert "<details><summary>eval: what is retained, 2 data sets" in held
    assert "≈ × 1.000 [0.900, 1.100] no difference, over base" in re.sub(r"\s+", " ", _text(held))
    assert "▲ +0.200 [+0.100, +0.300] better, over base" in re.sub(r"\s+", " ", _text(held))


def test_of_models_that_are_all_the_same_none_is_called_best(tmp_path: Path) -> None:
    text = read(make(tmp_path / "r", Made(scores=dict.fromkeys(("base", "sft", "grpo"), [0.0] * 9)))).text
    assert "All 3 models have sampled accuracy 0.000 [0.000, 0.000] on 9 problems." in text
    assert "is best" not in text


def test_an_evaluation_of_a_model_that_was_made_again_since_does_not_stand_beside_it(run: Path) -> None:
    manifest = run / "latest/grpo/manifest.json"
    content = json.loads(manifest.read_text())
    content["key"] = "f" * 64
    manifest.write_text(json.dumps(content))
    found = read(run)
    assert all(row["sampled"] is None for row in found.data["report-data"]["rows"])
    assert "is best" not in found.text
    assert "What came out" in found.text  # each stage's own figure stands in place of what nobody has measured
    assert found.text.count("loss 0.500") == 3
    assert "0.900" not in found.text
    assert not [tag for tag, about in found.tags if about.get("class") == "pairing"]


def test_cost_is_that_of_manifests_and_figures(run: Path) -> None:
    text = read(run).text
    assert "all 55s" in text  # 12 + 13 + 14, and 16 of the evaluation
    assert "1.50 GiB" in text
    assert "67%" in text  # 30 steps of 0.2 s in 9 s


def test_the_curves_are_the_figures_of_the_run(run: Path) -> None:
    stages = {one["stage"]: one["figures"] for one in read(run).data["curves-data"]["stages"]}
    assert list(stages) == ["base", "sft", "grpo"]
    (loss,) = [one for one in stages["grpo"] if one["name"] == "loss"]
    lines = [json.loads(line) for line in (run / "latest/grpo/figures.jsonl").read_text().splitlines()]
    assert loss["runs"]["quickstart"]["x"] == [row["step"] for row in lines]
    assert loss["runs"]["quickstart"]["y"] == pytest.approx([row["figures"]["loss"] for row in lines], rel=1e-5)


def test_what_is_wrong_with_a_training_is_said_with_its_cure(tmp_path: Path) -> None:
    run = make(tmp_path / "r", Made(steps=60))
    file = run / "latest/grpo/figures.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["figures"] |= {"completions/clipped_ratio": 0.9, "kl": 0.01}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(run)
    (bad,) = [about for tag, about in found.tags if tag == "article" and about.get("class") == "verdict bad"]
    assert bad
    verdict = health(read_run(run)["grpo"].figures())
    (one,) = [each for each in verdict if each.state == "bad"]
    assert one.cure in found.text
    assert f"threshold {one.threshold:g}" in found.text


def test_what_people_decided_is_told_without_their_names(run: Path) -> None:
    manifest = run / "latest/sft/manifest.json"
    decisions = {
        "annotators": 2.0,
        "agreement": "alpha 0.61 on 40 items",
        "first_shown_interval": [0.41, 0.6, 0.5],
        "gold_by_annotator": {"a1": [9, 10]},
        "guidelines": ["ab" * 32],
        "mode": "pick",
    }
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "use": "annotate", "details": {"decisions": decisions}}))
    text = read(run).text
    for told in ("What people decided", "agreement alpha 0.61 on 40 items", "gold by annotator a1 9, 10", "mode pick"):
        assert told in text, told
    assert "guidelines abababababab" in text


# --- texts -----------------------------------------------------------------------------------------------------------

HOSTILE = (
    "<script>window.PWNED = 1</script>",
    "</script><script>window.PWNED = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.PWNED = 1'>",
    "</textarea></title></style></pre></details>",
    "[click](javascript:alert(1)) ![x](https://example.invalid/x.png)",
    "a\"b'c`d&amp;<e>",
    "\u202egnp.exe\u2066\x1b[31mred\x07\r",
    "line\u2028sep\u2029 \ud83d half",
    "| a | ![x](..) --- {{7*7}} ${7*7} %s",
)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return read(make(tmp_path_factory.mktemp("plain") / "plain", Made(words="harmless")))


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_text_stays_a_text_wherever_it_stands(tmp_path: Path, harmless: Reader, attack: str) -> None:
    """As prompt, completion, solution, name of a reward, of a metric and of a figure, in the recipe and in a trace."""
    plain = harmless
    found = read(make(tmp_path / "hostile", Made(words=attack)))
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in plain.tags} | {"details", "svg", "title", "rect"}
    assert {name for _, about in found.tags for name in about} <= {name for _, about in plain.tags for name in about}
    for tag in ("script", "style", "meta", "h1", "h2", "section", "article"):
        assert [one for one, _ in found.tags].count(tag) == [one for one, _ in plain.tags].count(tag), tag
    assert not [name for _, about in found.tags for name in about if name.startswith("on") or name == "style"]
    assert {about.get("href", "#")[:1] for tag, about in found.tags if tag == "a"} == {"#"}  # type: ignore[index]


def test_of_a_completion_of_half_a_million_lines_a_few_are_shown(tmp_path: Path) -> None:
    run = make(tmp_path / "r", Made(rollouts=8, traces=0))
    rollouts = run / "latest/grpo/rollouts.jsonl"
    row = json.loads(rollouts.read_text().splitlines()[0])
    long = "\n".join(f"line {i}" for i in range(500_000))
    word = "x" * 1_000_000
    lines = [{**row, "completion": text} for text in (long, word, "short")]
    rollouts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = RunPage(run).html()
    assert len(html) < 400_000
    assert "line 0\n" in html
    assert "line 499999" in html  # an answer stands at the end
    assert "499,900 lines left out" in html
    assert "998,000 characters left out" in html


def test_without_a_script_the_tables_and_the_texts_stand(run: Path) -> None:
    found = read(run)
    assert not [about for _, about in found.tags if "hidden" in about]
    for told in ("thought 0", "grpo says 1 of problem 9", "lowest", "beta: 0.1", "draft 1 of problem 0"):
        assert told in found.text, told


def test_secrets_and_the_home_folder_are_not_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    secrets = {
        "api_key": "s3cr3tvalue99",
        "stages": {"grpo": {"args": {"hub_token": "t0kenvalue", "model": "hf_" + "a" * 30}}},
    }
    html = RunPage(make(tmp_path / "runs/r", Made(recipe=secrets))).html()
    for secret in ("s3cr3tvalue99", "t0kenvalue", "hf_aaaa", str(tmp_path)):
        assert secret not in html
    assert "~/runs/r/grpo-" in html


# --- a page that stands alone ----------------------------------------------------------------------------------------


def test_the_page_names_no_address_but_its_own_places(run: Path) -> None:
    html = RunPage(run).html()
    for content in map(
        static, ("uPlot.iife.min.js", "report.js", "report.css", "page.css", "trace.css", "uPlot.min.css")
    ):
        assert content in html
        html = html.replace(content, "")
    assert not re.search(r"https?://|src=|<link|@import|url\(", html)
    ids = re.findall(r' id="?([\w-]+)', html)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in re.findall(r"href=(#[\w-]+)", html)} <= set(ids)


def test_a_run_of_an_earlier_version_has_its_page(tmp_path: Path) -> None:
    """No `run.jsonl`, no `figures.jsonl` but `log.jsonl`, no traces."""
    run = make(tmp_path / "old", Made(traces=0))
    for file in run.glob("*/figures.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        (file.parent / "log.jsonl").write_text(
            "".join(json.dumps({**row["figures"], "step": row["step"], "epoch": 0.1}) + "\n" for row in rows)
        )
        file.unlink()
    for file in run.glob("*/traces.jsonl"):
        file.unlink()
    found = read(run)
    assert "grpo is best" in found.text
    assert [one["stage"] for one in found.data["curves-data"]["stages"]] == ["base", "sft", "grpo"]
    assert "How it searched" not in found.text


def test_a_folder_of_the_first_format_has_its_page(tmp_path: Path) -> None:
    store = Path(__file__).parent.parent / "format_1/store/month"
    folder = tmp_path / "month"
    (folder / "latest").mkdir(parents=True)
    for stage in store.iterdir():
        (folder / stage.name).symlink_to(stage)
        (folder / "latest" / stage.name.rpartition("-")[0]).symlink_to(f"../{stage.name}")
    text = read(folder).text
    assert "sampled accuracy 0.000" in text
    assert "eval" in text


def test_what_is_read_again_is_what_is_new(run: Path) -> None:
    page = RunPage(run)
    page.html()
    file = run / "latest/grpo/figures.jsonl"
    file.write_bytes(
        file.read_bytes()
        + json.dumps({"step": 31, "total": 31, "seconds": 9.9, "figures": {"loss": 7.5}}).encode()
        + b"\n"
    )
    read_bytes = []
    for tail, _ in page.curves.values():
        rows = tail.rows
        tail.rows = lambda rows=rows: (read_bytes.append(row) or row for row in rows())  # type: ignore[method-assign, assignment, misc]
    (loss,) = [
        one
        for stage in Reader(page.html()).data["curves-data"]["stages"]
        if stage["stage"] == "grpo"
        for one in stage["figures"]
        if one["name"] == "loss"
    ]
    assert loss["runs"]["quickstart"]["y"][-1] == 7.5
    assert len(read_bytes) == 1
