"""`episodic_memory`: try, be judged, write down what went wrong, and try again with the notes of similar problems.

Paper: Reflexion, Shinn et al., 2023 (https://huggingface.co/papers/2303.11366), algorithm 1: actor, evaluator,
self-reflection, and a memory of reflections of which the last few are shown.

1. The memory outlives the problem: beside its own reflections a trial is shown those of the most similar problems
   (BM25), so that what one taught helps the next. `similar: 0` is the paper's.
2. The memory is read by a tool call, whose answer is logged, and written from completions, which are logged too: a
   replay reads the same notes and ends with the same memory.
3. There is no reflection after the last trial, which nothing would read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any, ClassVar, cast

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.text import ask_about, extend_question, to_text
from posttrain_plugins.text.answers import candidates, choose, sortable
from posttrain_plugins.types import (
    CallTool,
    Candidate,
    Completion,
    Generate,
    ModelRef,
    Problem,
    RequestGenerator,
    Result,
    RewardRef,
    Score,
    Strategy,
    StrategyRef,
)

__all__ = ["EpisodicMemory"]


_VERDICT = re.compile(r"\b(in)?correct\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_K1, _B = 1.5, 0.75  # BM25's usual

JUDGE_PROMPT = """Question: $question

Answer: $completion

Is this answer correct? Check every step, then end with one word: correct or incorrect."""

REFLECTION_PROMPT = """Question: $question

Your answer: $completion

Verdict: $verdict

The answer was not good enough. In a few sentences, say what went wrong, and what to do differently next time."""

MEMORY_PROMPT = """What was learned from earlier attempts at this and similar problems:
$reflections"""


@dataclass
class EpisodicMemory:
    """Try until an attempt passes, each one made with the reflections on those that failed.

    Args:
        scorer: a reward that judges an attempt; one that it cannot judge is kept.
        judge: the role that judges where there is no scorer; the policy by default.
        strategy: how an attempt is made; one completion at the problem's own temperature by default.
        trials: attempts at most.
        threshold: the score from which an attempt passes.
        own: reflections on this problem that an attempt is shown, the newest; the paper's 3.
        similar: reflections from the memory that it is shown, those of the most similar problems.
        size: reflections kept in all; the oldest are forgotten.
        memory_file: a JSONL file that they are read from and added to; without one they last as long as this object.
        judge_prompt: `$question` and `$completion` are filled in; the last `correct` or `incorrect` counts.
        reflection_prompt: `$question`, `$completion` and `$verdict` are filled in.
        memory_prompt: put below the question; `$reflections` is filled in.

    Raises:
        InputError: scorer and judge are both given, or the memory file cannot be read.

    Example:
        >>> steps = EpisodicMemory(scorer="correct", similar=0)(Problem("2+2=?"))
        >>> next(steps).prompt
        '2+2=?'
        >>> steps.send([Completion("5")])
        Score(prompt='2+2=?', completions=('5',), scorer='correct')
        >>> steps.send([0.0]).purpose
        'reflection'
        >>> print(steps.send([Completion("Count on your fingers.")]).prompt)
        2+2=?
        <BLANKLINE>
        What was learned from earlier attempts at this and similar problems:
        - Count on your fingers.
    """

    is_stateful: ClassVar[bool] = True

    scorer: RewardRef | None = None
    judge: ModelRef | None = None
    strategy: StrategyRef | None = None
    trials: int = 3
    threshold: float = 0.5
    own: int = 3
    similar: int = 3
    size: int = 1000
    memory_file: str | None = None
    judge_prompt: str = JUDGE_PROMPT
    reflection_prompt: str = REFLECTION_PROMPT
    memory_prompt: str = MEMORY_PROMPT
    _memory: dict[tuple[str, str], None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.scorer is not None and self.judge is not None:
            raise InputError("episodic_memory needs one of scorer and judge, found both", hint="name one of them")
        self.begin_run()

    def begin_run(self) -> None:
        """Go back to what the memory file holds, so that two models are not compared on each other's notes."""
        entries = _load(Path(self.memory_file)) if self.memory_file else []
        self._memory = dict.fromkeys(entries[-self.size :])  # (problem, reflection), the oldest first

    @property
    def tools(self) -> dict[str, Callable[..., Any]]:
        """What `CallTool` reaches: the memory, and the tools of the strategy that makes the attempts."""
        given = getattr(self.strategy, "tools", ())
        by_name = dict(given) if isinstance(given, Mapping) else {tool.__name__: tool for tool in given}
        return {**by_name, "recall_reflections": self.recall_reflections}

    def recall_reflections(self, question: str, count: int, memory: str = "") -> str:
        """Find what was learned from problems that are like this one.

        Args:
            question: the problem.
            count: how many reflections at most.
            memory: which memory is meant.

        Returns:
            A JSON list of reflections, those of the most similar problem first.
        """
        entries = list(self._memory)
        scores = bm25(question, [problem for problem, _ in entries])
        ranked = sorted(range(len(entries)), key=lambda i: (-scores[i], -i))  # of equal ones the newest
        return json.dumps([entries[i][1] for i in ranked[:count] if scores[i] > 0], ensure_ascii=False)

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        attempts: list[Candidate] = []
        has_passed = False
        try:
            has_passed = yield from self._try(problem, attempts)
        except BudgetExhausted:
            if not attempts:
                raise
        # The latest of those with the best score, since it knew the most; without scores the latest with an answer.
        keys = [(sortable(attempt.score), attempt.answer is not None, i) for i, attempt in enumerate(attempts)]
        best = max(keys)[-1] if keys else 0
        return choose(attempts, len(attempts) - 1 if has_passed else best)

    def _try(self, problem: Problem, attempts: list[Candidate]) -> RequestGenerator[bool]:
        """Add each attempt to `attempts`; return True as soon as one passes."""
        own: list[str] = []  # algorithm 1's mem, as far as it is about this problem
        for trial in range(1, self.trials + 1):  # "while M_e not pass or t < max trials"
            reflections = yield from self._recall(problem, own)
            attempt = yield from self._attempt(problem, reflections)  # "generate tau_t by the actor, with mem"
            if attempt is None:
                continue  # a failed sample is a trial lost
            attempts.append(attempt)
            has_passed, verdict = yield from self._judge(problem, attempt)  # "evaluate tau_t using M_e"
            if has_passed:
                return True
            if trial < self.trials:  # deviation 3: nothing would read what is learned from the last one
                # "generate self-reflection sr_t using M_sr", of the attempt and of the verdict on it
                texts = {"completion": attempt.text, "verdict": verdict}
                asked = self._ask(problem, self.reflection_prompt, "reflection", "policy", **texts)
                drawn: list[Completion] = yield asked
                if reflection := "".join(completion.text for completion in drawn).strip():
                    own.append(reflection)  # "append sr_t to mem"
                    self._remember(to_text(problem.prompt), reflection)
        return False

    def _recall(self, problem: Problem, own: list[str]) -> RequestGenerator[list[str]]:
        """Return the reflections that a trial is shown: of similar problems, then its own."""
        found: list[str] = []
        if self.similar:
            count = self.similar + len(own)  # its own are in the memory too
            arguments = {"question": to_text(problem.prompt), "count": count, "memory": self._name()}
            # A tool call and not a look into `_memory`: its answer is logged, so that a replay, which meets another
            # memory than the first run, shows the same reflections and sends the same requests.
            answer = yield CallTool("recall_reflections", arguments)
            with suppress(ValueError):  # an error message: the call failed, and the trial goes on without
                texts = json.loads(answer)
                found = [str(text) for text in texts if str(text) not in own] if isinstance(texts, list) else []
        return found[: self.similar] + own[max(len(own) - self.own, 0) :]  # the paper's bound Omega on mem

    def _attempt(self, problem: Problem, reflections: Sequence[str]) -> RequestGenerator[Candidate | None]:
        listed = "\n".join(f"- {reflection}" for reflection in reflections)
        text = Template(self.memory_prompt).safe_substitute(reflections=listed)
        prompt = extend_question(problem.prompt, text) if reflections else problem.prompt
        if self.strategy is None:
            return next(iter(candidates((yield Generate(prompt, params=problem.params)))), None)
        # The memory is ours: a strategy that shows its tools to the model must not offer it as one of them.
        schemas = [(schema.get("name"), schema.get("function", {}).get("name"), schema) for schema in problem.tools]
        tools = tuple(schema for *names, schema in schemas if "recall_reflections" not in names)
        result = yield from cast(Strategy, self.strategy)(replace(problem, prompt=prompt, tools=tools))
        return Candidate(result.text, result.answer) if result.text else None

    def _judge(self, problem: Problem, attempt: Candidate) -> RequestGenerator[tuple[bool, str]]:
        """Return whether the attempt passes, and the verdict in words."""
        if self.scorer is not None:
            [attempt.score] = yield Score(problem.prompt, (attempt.text,), self.scorer)
            score = attempt.score
            # What cannot be judged passes: there is nothing to reflect on, and a retry would be judged no better.
            return score is None or score >= self.threshold, "" if score is None else f"a score of {score:g}"
        judge = self.judge or "policy"
        replies = yield self._ask(problem, self.judge_prompt, "judgement", judge, completion=attempt.text)
        verdict = "".join(completion.text for completion in replies)
        found = _VERDICT.findall(verdict)  # of each word its "in", or nothing; the last one counts
        return bool(found) and not found[-1], verdict

    def _ask(self, problem: Problem, template: str, purpose: str, model: str, **texts: str) -> Generate:
        prompt = ask_about(problem.prompt, template, **texts)
        temperature = 0.0 if purpose == "judgement" else problem.params.temperature
        params = replace(problem.params, temperature=temperature, stop=())
        return Generate(prompt, params=params, model=model, purpose=purpose)

    def _remember(self, question: str, reflection: str) -> None:
        """Remember it once, however often a replay comes by."""
        if (question, reflection) in self._memory:
            return
        self._memory[question, reflection] = None
        while len(self._memory) > self.size:
            del self._memory[next(iter(self._memory))]  # a dict keeps its order: the oldest
        if self.memory_file:
            # Opened and closed for each entry, so that a run that is killed loses one line at most.
            with Path(self.memory_file).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"problem": question, "reflection": reflection}, ensure_ascii=False) + "\n")

    def _name(self) -> str:
        """Tell this memory from that of a strategy with other parameters, whose calls stand in the same log."""
        # not the path of the file: a run that is moved to another folder replays its log
        parameters = {k: v for k, v in vars(self).items() if k not in ("_memory", "strategy", "memory_file")}
        return hashlib.sha256(repr((type(self.strategy).__name__, parameters)).encode()).hexdigest()[:8]


# --- The memory ------------------------------------------------------------------------------------------------------


def bm25(query: str, texts: Sequence[str]) -> list[float]:
    """Score how well each text fits the query: Okapi BM25 with an IDF that is never negative; 0 without a common word.

    Example:
        >>> scores = bm25("train from Rome", ["a train to Rome", "a car", "the train"])
        >>> scores[0] > scores[2] > scores[1] == 0
        True
    """
    bags = [Counter(_WORD.findall(text.lower())) for text in texts]
    mean_length = sum(map(Counter.total, bags)) / max(len(bags), 1) or 1.0
    scores = [0.0] * len(bags)
    for word in dict.fromkeys(_WORD.findall(query.lower())):
        having = sum(word in bag for bag in bags)
        # The 1 is Lucene's: without it a word that most problems have in common would count against a text.
        idf = math.log(1 + (len(bags) - having + 0.5) / (having + 0.5))
        for i, bag in enumerate(bags):
            norm = _K1 * (1 - _B + _B * bag.total() / mean_length)
            scores[i] += idf * bag[word] * (_K1 + 1) / (bag[word] + norm)
    return scores


def _load(path: Path) -> list[tuple[str, str]]:
    """Return the file's entries; a torn last line (a killed run) is taken off."""
    content = path.read_bytes() if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        # taken off the file too: the next entry would be appended to the torn one, and both be lost
        path.write_bytes(complete)
    entries = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            entry = json.loads(line)
            entries.append((str(entry["problem"]), str(entry["reflection"])))
        except (ValueError, KeyError, TypeError) as error:
            message = f"the memory file cannot be read: {path}:{number}: {type(error).__name__}: {error}"
            raise InputError(message, hint="mend or delete that line") from error
    return entries
