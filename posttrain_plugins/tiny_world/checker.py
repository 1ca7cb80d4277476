r"""Check completions of the tiny world strictly: read one, and judge its answer and every step.

A step is right when it starts from the previous result *as written*, copies the problem's next operator and digit, and
has the right value. A wrong step often cancels (max, min) and a one-digit answer is right by chance one time in ten, so
the score that counts is `strict`: the layout as taught, the right answer, and every step right. Both layouts are read:

| layout | completion                                          | written by |
|--------|-----------------------------------------------------|------------|
| chat   | `<think>3\|7=4;4>2=4</think><answer>4</answer>`      | SFT and on |
| raw    | `3\|7=4;4>2=4\n4`                                    | the base   |

No text makes it raise. No paper: the task is ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from posttrain_plugins.tiny_world.task import evaluate, parse_expression, value_of

__all__ = ["STEP_SEPARATOR", "Check", "check", "find_expression", "marking_prompt", "split_steps"]

STEP_SEPARATOR = ";"

# An expression, and no part of a step: neither the digits around a "=", nor the tail of what stands in front of one.
_EXPRESSION = re.compile(r"(?<![0-9=])(?<![0-9][<>|])[0-9](?:[<>|][0-9])+(?![0-9=]|[<>|][0-9])")
_STEP = re.compile(r"([0-9])([<>|])([0-9])=([0-9])")
_CHAIN = r"(?:[0-9<>|=]+(?:;[0-9<>|=]+)*)?"
_CHAT = re.compile(rf"<think>{_CHAIN}</think><answer>([0-9])</answer>")
_RAW = re.compile(rf"{_CHAIN}\n([0-9])")
_ANSWER = re.compile(r"<answer>\s*([0-9])\s*</answer>")


@dataclass(frozen=True)
class Check:
    """What the checker found.

    Args:
        answer: the digit written as the answer, or None where there is none to be read.
        answer_correct: the answer is the expression's value.
        steps: one verdict for every step written, in order; usable as a process reward or as PRM labels.
        expected_steps: how many steps the problem takes.
        well_formed: the completion is in the chat or the raw layout, nothing before, between or after.
    """

    answer: str | None
    answer_correct: bool
    steps: tuple[bool, ...]
    expected_steps: int
    well_formed: bool

    @property
    def strict(self) -> bool:
        """Return True where layout, answer and every step are right, and no step is missing or too many."""
        return self.well_formed and self.answer_correct and all(self.steps) and len(self.steps) == self.expected_steps

    @property
    def fraction(self) -> float:
        """Return the share of right steps, in [0, 1]; missing steps and steps too many count as wrong."""
        # by the longer of the two: else one right step and nothing more, or a hundred guesses, would pay
        return sum(self.steps) / max(len(self.steps), self.expected_steps)


def check(expression: str, completion: str) -> Check:
    r"""Judge a completion, in the chat or the raw layout.

    Args:
        expression: the problem, such as `3|7>2`.
        completion: any text.

    Returns:
        The verdicts; a text without steps or answer gives an empty `steps` and an `answer` of None.

    Example:
        >>> check("3|7>2", "<think>3|7=7;7>2=7</think><answer>7</answer>")
        Check(answer='7', answer_correct=False, steps=(False, True), expected_steps=2, well_formed=True)
        >>> check("3|7>2", "3|7=4;4>2=4\n4").strict
        True
    """
    text = completion.strip()
    layout = _CHAT.fullmatch(text) or _RAW.fullmatch(text)
    # Outside both layouts an answer still has to be in its tags: a bare digit in a broken completion is a step's.
    tagged = _ANSWER.findall(text)
    answer = layout[1] if layout else tagged[-1] if tagged else None
    left, pairs = parse_expression(expression)
    verdicts = []
    written: str | None = str(left)  # what the next step has to start from; None after a step that cannot be read
    for i, step in enumerate(split_steps(text)):
        match = _STEP.fullmatch(step)
        is_right = False
        if match and i < len(pairs):
            start, operator, right, value = match.groups()
            # The operator and the digit have to be copied from the problem: an easier step of one's own does not count.
            is_copied = (start, operator, int(right)) == (written, *pairs[i])
            is_right = is_copied and int(value) == value_of(int(start), operator, int(right))
        verdicts.append(is_right)
        written = match[4] if match else None  # as written, even if it is wrong: each mistake costs one step
    return Check(
        answer=answer,
        answer_correct=answer == str(evaluate(expression)),
        steps=tuple(verdicts),
        expected_steps=len(pairs),
        well_formed=layout is not None,
    )


def split_steps(completion: str) -> list[str]:
    r"""Return the written steps of a completion, right or wrong: in its think tags, or before its last line.

    Example:
        >>> split_steps("<think>3|7=4;4>2=4</think><answer>4</answer>")
        ['3|7=4', '4>2=4']
        >>> split_steps("3|7=4;4>2=4\n4")
        ['3|7=4', '4>2=4']
    """
    text = completion.strip()
    chain = text.partition("<think>")[2] if "<think>" in text else text
    chain = chain.partition("</think>")[0].partition("<answer>")[0].strip()
    steps = chain.partition("\n")[0].split(STEP_SEPARATOR)
    return [step for step in steps if step] if "=" in chain else []  # a chain without "=" is an answer alone


def find_expression(prompt: str) -> str | None:
    r"""Find the problem in a prompt: the last expression that is not a step, or None.

    Example:
        >>> find_expression("<eos>3|7>2\n")
        '3|7>2'
        >>> find_expression("Hello") is None
        True
    """
    found = _EXPRESSION.findall(prompt)
    return found[-1] if found else None


def marking_prompt(prompt: str, completion: str) -> str:
    r"""Make the prompt by which the base model, which has read marked homework, marks the last step of a completion.

    The steps before it are shown as marked right; the model goes on with `y` or `n`.

    Example:
        >>> marking_prompt("3|7>2", "<think>3|7=4;4>2=2")
        'mark 3|7>2\n3|7=4y;4>2=2'
    """
    steps = split_steps(completion)
    return f"mark {find_expression(prompt)}\n{'y;'.join(steps)}"
