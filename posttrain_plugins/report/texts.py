"""Completions on a page: groups side by side with each reward as a bar, and answers before and after. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain_plugins.report.page import text
from posttrain_plugins.report.problems import KINDS, Answers, Pair, Pairing
from posttrain_plugins.report.rollouts import Chosen, Completion
from posttrain_plugins.report.words import count, cut_lines
from posttrain_plugins.text.messages import is_conversational, to_text

__all__ = ["group_card", "problem_cards", "prompt_text"]

PREVIEW_CHARS = 90
NOTHING = "<i>(nothing written)</i>"
MAX_OF_KIND = {"broken": 60, "fixed": 40, "worse": 20, "better": 20, "same": 5}

Ranges = Mapping[str, tuple[float, float]]


def prompt_text(prompt: Any) -> str:
    """Return a prompt as plain text: one message as its content, several with their roles."""
    if not is_conversational(prompt):
        return str(prompt)
    if len(prompt) == 1:
        return to_text(prompt)
    return "\n\n".join(f"{message.get('role', '')}: {to_text([message])}" for message in prompt)


def preview(value: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(value[: 8 * PREVIEW_CHARS].split())
    return line if len(line) <= PREVIEW_CHARS else line[: PREVIEW_CHARS - 1] + "…"


def group_card(stage: str, group: Chosen, ranges: Ranges) -> Iterator[str]:
    """Yield a group of one prompt: closed, a line with its mean; open, all completions side by side.

    Args:
        stage: that sampled it.
        group: the completions.
        ranges: reward -> its lowest and highest score in the whole stage.
    """
    prompt = prompt_text(group.prompt)
    kinds = " ".join(sorted(group.kinds))
    yield (
        f'<details class=group data-stage="{text(stage)}" data-step="{group.step}" data-kinds="{kinds}" '
        f'data-prompt="{group.prompt_id}"><summary><span class=step>step {group.step:,}</span> '
        f'<span class="mono preview">{text(preview(prompt))}</span>{_badges(group.kinds)}'
        f"<span class=mean>{_mean(group.mean)}</span></summary>"
    )
    yield f"<pre>{text(cut_lines(prompt))}</pre>"
    yield from _columns(group.columns)
    yield "<div class=cards>"
    for number, completion in enumerate(group.completions, 1):
        yield f"<article class=card><h4>{number}{_total(completion)}</h4>{_bars(completion, ranges)}"
        yield f"<pre>{text(cut_lines(to_text(completion.text))) or NOTHING}</pre></article>"
    yield "</div>"
    if group.left_out:
        yield f"<p class='dim small'>{count(group.left_out, 'completion')} more of this group in rollouts.jsonl</p>"
    yield "</details>"


def _badges(kinds: frozenset[str]) -> str:
    return "".join(
        f' <span class="badge {kind}">{kind}</span>' for kind in ("best", "worst", "changed") if kind in kinds
    )


def _mean(value: float | None) -> str:
    return "not judged" if value is None else f"mean reward {value:.3f}"


def _total(completion: Completion) -> str:
    if completion.weighted is None:
        return " <span class=dim>not judged</span>"
    return f" <span class=dim>reward</span> {completion.weighted:.3g}"


def _bars(completion: Completion, ranges: Ranges) -> str:
    lines = []
    for name, value in completion.rewards.items():
        low, high = ranges.get(name, (0.0, 1.0))
        low, high = min(low, 0.0), max(high, 0.0)
        shown = "—" if value is None else f"{value:.3g}"
        share = 0.0 if value is None or high == low else (value - low) / (high - low)
        bar = f'<svg class=bar aria-hidden=true><rect width="{100 * share:.1f}%" height="100%"/></svg>'
        lines.append(f"<tr><th scope=row>{text(name)}</th><td>{bar}</td><td>{shown}</td></tr>")
    return f"<table class=bars>{''.join(lines)}</table>" if lines else ""


def _columns(columns: Mapping[str, Any]) -> Iterator[str]:
    """Yield further columns of the row, such as the solution, each in a line."""
    for name, value in columns.items():
        yield f"<p class=small><span class=dim>{text(name)}:</span> {text(preview(str(value)))}</p>"


def problem_cards(pairing: Pairing, names: tuple[str, str], limits: Mapping[str, int] | None = None) -> Iterator[str]:
    """Yield the problems that changed, both texts side by side, and how many more there are.

    Args:
        pairing: the problems.
        names: of both sides.
        limits: kind -> how many of it are shown.
    """
    limits = limits or MAX_OF_KIND
    for kind in KINDS:
        of_kind = pairing.of_kind(kind)
        for pair in of_kind[: limits[kind]]:
            yield from _problem(pair, names)
        if len(of_kind) > limits[kind]:
            gone = count(len(of_kind) - limits[kind], "problem")
            yield f'<p class="dim small left-out" data-kind={kind}>{gone} more of kind “{kind}” in samples.jsonl</p>'


def _problem(pair: Pair, names: tuple[str, str]) -> Iterator[str]:
    prompt = prompt_text(pair.before.prompt)
    yield (
        f'<details class=problem data-kind={pair.kind}><summary><span class="badge {pair.kind}">{pair.kind}</span> '
        f'<span class=step>#{text(pair.problem)}</span> <span class="mono preview">{text(preview(prompt))}</span>'
        f"<span class=mean>{pair.before.score:.3g} → {pair.after.score:.3g}</span></summary>"
    )
    yield f"<pre>{text(cut_lines(prompt))}</pre>"
    yield from _columns(pair.before.columns)
    yield "<div class='cards two'>"
    for name, answers in zip(names, (pair.before, pair.after), strict=True):
        yield f"<article class=card><h4>{text(name)} {_of_many(answers)}</h4>"
        shown = text(cut_lines(to_text(answers.texts[answers.example])))
        yield f"<pre>{shown or NOTHING}</pre></article>"
    yield "</div></details>"


def _of_many(answers: Answers) -> str:
    if len(answers.texts) == 1:
        return f"<span class=dim>scored {answers.score:.3g}</span>"
    score = answers.scores[answers.example]
    one = "not judged" if score is None else f"{score:.3g}"
    return f"<span class=dim>mean of {len(answers.texts)}: {answers.score:.3g}; this one: {one}</span>"


def summary_line(pairing: Pairing) -> str:
    """Return how many problems are of each kind."""
    found: Sequence[str] = [f"{pairing.count(kind)} {kind}" for kind in reversed(KINDS) if pairing.count(kind)]
    return ", ".join(found)
