"""`judge`: a language model rates completions, by a rubric or by comparing them; also step by step.

Papers: LLM-as-a-judge, Zheng et al., 2023 (https://huggingface.co/papers/2306.05685), single-answer grading and
pairwise comparison with swapped positions; as a training signal RLAIF, Lee et al., 2023
(https://huggingface.co/papers/2309.00267), section 2.

1. Pairwise, a completion's score is the share of the other completions of its prompt, in the same call, that it beats.
2. Step by step, each step is rated in a request of its own, with the completion up to it.
3. A rating that could not be asked for is None, and told in `failures`. TRL's trainers sum rewards and take None for
   nothing, so where no other reward judges it counts as 0: `max_none_share` beside the judge ends such a run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Literal, TypeAlias

from posttrain_plugins.backends.open import open_backend
from posttrain_plugins.errors import InputError
from posttrain_plugins.text import last_user_text, to_text
from posttrain_plugins.text.steps import SEPARATOR, Aggregate, aggregate, split_steps
from posttrain_plugins.types import (
    ModelArtifact,
    ModelRef,
    ObjectRef,
    Problem,
    Prompt,
    SamplingParams,
    Usage,
    server_of,
)

__all__ = ["Judge"]

Rating: TypeAlias = tuple[float | None, str | None]
"""A score in [0, 1], or None and, where the judge could not be asked, why."""

RUBRIC = """You are a strict and fair grader.

Question:
{prompt}

Answer:
{completion}

Judge whether the answer is correct, complete and clear. Think briefly, then end with a rating from 1 (useless) to 10
(perfect) in this form: [[7]]"""

COMPARISON = """You are a strict and fair grader.

Question:
{prompt}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Think briefly, then end with [[A]] or [[B]]."""


@dataclass
class Judge:
    """Rate completions with a model.

    Args:
        model: who judges: a model of the recipe, a folder, a Hub id, or a server (`http://host:8000/v1#name`).
        judging: `pointwise`, a rating of each by itself; `pairwise`, against the other completions of its prompt; or
            `steps`, a rating of each step, aggregated.
        rubric: the pointwise prompt; `{prompt}` and `{completion}` are filled in, other columns by their names too.
        comparison: the pairwise prompt, with `{prompt}`, `{first}` and `{second}`.
        render: `function(prompt, completion) -> prompt`, in the place of `rubric`, for judges that were trained on a
            layout of their own.
        pattern: a regular expression whose first group is the rating; its last match counts.
        values: what a rating means where it is a word, such as `{y: 1.0, n: 0.0}`; without it, it is a number.
        low: the lowest rating, which scores 0.
        high: the highest rating, which scores 1.
        ratings: how many ratings are averaged, drawn at `temperature`.
        swap: compare in both orders, which takes out the judge's taste for one position.
        separator: what ends a step.
        aggregate: how the steps' ratings become one score.
        chat: ask in a chat message; False sends the rubric as plain text.
        temperature: 0 is greedy.
        max_tokens: of the judge's answer.
        api_key: of a server, by default `OPENAI_API_KEY` of the environment; a recipe may not hold one.

    Raises:
        InputError: for a pattern without a group.
    """

    __name__ = "judge"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    holds_model: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"model": "tiny:model", "max_tokens": 4}
    longest_text_chars: ClassVar[int] = 500

    model: ModelRef
    judging: Literal["pointwise", "pairwise", "steps"] = "pointwise"
    rubric: str = RUBRIC
    comparison: str = COMPARISON
    render: ObjectRef | None = None
    pattern: str = r"\[\[\s*(-?\d+(?:\.\d+)?|[AB])\s*\]\]"
    values: dict[str, float] = field(default_factory=dict)
    low: float = 1.0
    high: float = 10.0
    ratings: int = 1
    swap: bool = True
    separator: str = SEPARATOR
    aggregate: Aggregate = "min"
    chat: bool = True
    temperature: float = 0.0
    max_tokens: int = 512
    api_key: str | None = None

    def __post_init__(self) -> None:
        if re.compile(self.pattern).groups < 1:
            raise InputError(f"judge's pattern has no group: {self.pattern!r}", hint=r"write \[\[(\d+)\]\]")
        if self.ratings > 1 and self.temperature == 0:
            raise InputError("judge draws several ratings at temperature 0, all equal", hint="set temperature: 1.0")
        self.spent = Usage()
        self.failures: list[str] = []
        self._backend: Any = None
        self._log: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_backend": None, "_log": None}  # a model and an open file stay in their process

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where the judge gave no rating that can be read, or has no step to rate.

        None is also what it could not be asked for; `failures` has the reasons of these, and TRL's log their number.

        Args:
            columns: further columns, which the rubric may name.
        """
        known = len(self.failures)
        scores: list[float | None]
        if self.judging == "pairwise":
            scores = self._compare(prompts, completions)
        elif self.judging == "steps":
            scores = [
                None
                if any(why for _, why in rated)
                else aggregate([score or 0.0 for score, _ in rated], self.aggregate)
                for rated in self._rate_steps(prompts, completions, columns)
            ]
        else:
            # Lists alone: what a trainer gives beside the columns (its state) has no value for each completion.
            lists = {name: values for name, values in columns.items() if isinstance(values, list)}
            texts = [to_text(completion) for completion in completions]
            rows = [{name: values[i] for name, values in lists.items()} for i in range(len(prompts))]
            rated = self._rate(list(zip(prompts, texts, rows, strict=True)))
            scores = [score for score, _ in rated]
            self.failures += [why for _, why in rated if why]
        if len(self.failures) > known and callable(columns.get("log_metric")):  # TRL's trainers give it
            columns["log_metric"]("judge/missing", float(len(self.failures) - known))
        return scores

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> list[list[float]]:
        """Rate each step, shown together with those before it; one that cannot be read, or be asked for, scores 0.

        Args:
            columns: with `steps`, these; else `separator` splits.

        Returns:
            B lists, one score in [0, 1] for each step.
        """
        return [[score or 0.0 for score, _ in rated] for rated in self._rate_steps(prompts, completions, columns)]

    def close(self) -> None:
        """Free the judge's memory; the next call loads it again."""
        if self._backend is not None and hasattr(self._backend, "close"):
            self._backend.close()
        self._backend = None

    # --- Asking ---------------------------------------------------------------------------------------------------

    def _rate_steps(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, Any]
    ) -> list[list[Rating]]:
        texts = [to_text(completion) for completion in completions]
        steps = columns.get("steps") or [split_steps(text, self.separator) for text in texts]
        # A step is shown with all before it: alone it is neither right nor wrong.
        shown = [["".join(of_one[: i + 1]) for i in range(len(of_one))] for of_one in steps]
        ratings = iter(
            self._rate([(prompt, text, {}) for prompt, of_one in zip(prompts, shown, strict=True) for text in of_one])
        )
        rated = [[next(ratings) for _ in of_one] for of_one in shown]
        self.failures += [next(why for _, why in of_one if why) for of_one in rated if any(why for _, why in of_one)]
        return rated

    def _rate(self, rows: Sequence[tuple[Prompt, str, Mapping[str, Any]]]) -> list[Rating]:
        """Return the mean of a text's ratings: of each prompt, text, and further columns that the rubric may name."""
        questions: list[Prompt] = []
        for prompt, text, columns in rows:
            if self.render is not None:
                render: Callable[[str, str], Prompt] = self.render  # type: ignore[assignment]
                questions.append(render(last_user_text(prompt), text))
            else:
                questions.append(self._filled(self.rubric, {**columns, "prompt": to_text(prompt), "completion": text}))
        means: list[Rating] = []
        for answers, why in self._ask(questions):
            known = []
            for rating in map(self._rating, answers):
                if self.values:
                    known += [self.values[rating]] if rating in self.values else []
                elif rating is not None:
                    with contextlib.suppress(ValueError):  # a letter, where a number is wanted
                        share = (float(rating) - self.low) / (self.high - self.low)
                        known.append(min(1.0, max(0.0, share)))
            # some of several ratings are enough; an answer that came and cannot be read is the judge's own fault
            means.append((fmean(known), None) if known else (None, why))
        return means

    def _compare(self, prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[float | None]:
        texts = [to_text(completion) for completion in completions]
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):  # by text: a group of GRPO is no column of the call
            groups.setdefault(to_text(prompt), []).append(i)
        pairs = [
            (i, j)
            for group in groups.values()
            for i in group
            for j in group
            if texts[i] != texts[j] and (self.swap or i < j)  # of equal texts only the position would decide
        ]
        fields = [{"prompt": to_text(prompts[i]), "first": texts[i], "second": texts[j]} for i, j in pairs]
        wins: dict[int, list[float]] = {}
        unasked: dict[int, str] = {}
        asked = self._ask([self._filled(self.comparison, one) for one in fields])
        for (i, j), (answers, why) in zip(pairs, asked, strict=True):
            unasked |= {i: why, j: why} if why else {}
            for verdict in map(self._rating, answers):
                if verdict in ("A", "B"):  # an unreadable verdict is no draw
                    wins.setdefault(i, []).append(float(verdict == "A"))
                    wins.setdefault(j, []).append(float(verdict == "B"))
        self.failures += [why for i, why in unasked.items() if i not in wins]
        return [fmean(wins[i]) if i in wins else None for i in range(len(texts))]

    def _rating(self, text: str) -> str | None:
        """Return the last rating in an answer: judges weigh others before it."""
        found = list(re.finditer(self.pattern, text))
        return found[-1].group(1) if found else None

    def _filled(self, template: str, fields: Mapping[str, Any]) -> Prompt:
        """Return the template as a question with its `{fields}`; braces that name no field stay as they are.

        `str.format` would take the braces of code and LaTeX in a rubric for fields.
        """
        text = re.sub(r"\{(\w+)\}", lambda m: str(fields[m[1]]) if m[1] in fields else m[0], template)
        return [{"role": "user", "content": text}] if self.chat else text

    def _ask(self, questions: Sequence[Prompt]) -> list[tuple[list[str], str | None]]:
        """Return the judge's answers to each question, and why some are missing; an equal question is asked once."""
        from posttrain_plugins.engine.keys import key_of
        from posttrain_plugins.engine.log import RequestLog
        from posttrain_plugins.engine.solve import sample
        from posttrain_plugins.engine.trace import failures_of

        if self._log is None:  # in memory: what was rated in an earlier call is not paid for again
            self._log = RequestLog(None)
        # A question's key as its problem's id: its seeds, so its ratings too, are the same in whatever batch it stands.
        params = SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens)
        problems = {key_of(question): Problem(question, params, id=key_of(question)) for question in questions}
        results = sample(list(problems.values()), self.ratings, backend=self._open(), log=self._log)
        for result in results:  # a judge's tokens count against the budget like the policy's
            self.spent = sum(result.usage.values(), self.spent)
        answers = {
            key: ([one.text for one in result.candidates], next(iter(failures_of(result)), None))
            for key, result in zip(problems, results, strict=True)
        }
        return [answers[key_of(question)] for question in questions]

    def _open(self) -> Any:
        if self._backend is None:
            given: Any = self.model
            if not isinstance(given, ModelArtifact):
                given = ModelArtifact(str(given), str(given))
            identity = None if server_of(given.path) else given.name  # a server's model goes by its name there
            self._backend = open_backend(given.path, given.loading, identity=identity, api_key=self.api_key)
        return self._backend
