"""Sorting by merging: lists of letters, what a graph of thoughts asks on its way, and the errors of what is written.

Task and count of errors: Besta et al., 2023 (https://huggingface.co/papers/2308.09687), section 5.1: a list is split
into parts, each part is sorted, and the sorted parts are merged two by two.

| asked               | written (and so on, up to `l0`) | for                        |
|---------------------|---------------------------------|----------------------------|
| `sort caba cbaa`    | `a4b2c2d0`                      | the question               |
| `sort caba`         | `a2b1c1d0`                      | a part, one of its words   |
| `merge a2b1 a2b1`   | `a4b2c0d0`                      | two sorted parts           |

1. A sorted list is written by its runs, every letter with how often it is there: what is merged are small numbers. A
   model of 0.7 million weights merges lists that are written in full hardly better than it sorts them.
2. The parts are the words of the question, and the strategy itself cuts it; the authors ask the model to.
3. Problems are split three ways by a hash of their letters, in whatever order. Parts, which are short, are not.
"""

from __future__ import annotations

import random
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import last_user_text, to_text

if TYPE_CHECKING:
    import datasets

WORDS = ("sort", "merge")
LETTERS = "abcdefghijkl"
MOST = 9
"""Of one letter in a list, so that its number is one character."""
MAX_COUNT = 84
"""Letters of a list: of more, hardly any draw has no letter more than `MOST` times."""

_RUN = re.compile(f"([{LETTERS}])([0-9]*)")  # of a list that is not sorted yet, each letter is a run
_RUNS = re.compile(f"(?:[{LETTERS}][0-9]){{{len(LETTERS)}}}")
_COLUMNS = {"problems": ("prompt", "solution"), "corpus": ("text",), "demonstrations": ("prompt", "completion")}

Split = Literal["train", "development", "exam"]
Row = dict[str, Any]


@dataclass
class Lists:
    """Make lists to be sorted: problems, text to pretrain on, or demonstrations.

    Args:
        split: `train`, `development` (20 % of all problems) or `exam` (20 %).
        part: `problems` have `prompt` and `solution`; `corpus` has a `text`, a list no longer than a part that is
            sorted, or two sorted lists that are merged; `demonstrations` have `prompt` and `completion`: a whole list
            that is sorted at once, and all that `operations` ask on the way to it, each prompt once.
        size: number of lists; each has several demonstrations.
        seed: what is drawn.
        count: letters in a list.
        parts: groups in which it is written.
        operations: those of strategy `graph_of_thoughts`, for demonstrations.

    Raises:
        InputError: a size below 1, or letters that do not make so many equal parts.

    Example:
        >>> Lists("train", size=1, count=8, parts=2)()[0]["solution"]
        'a1b0c1d1e1f1g1h1i1j0k0l0'
    """

    split: Split
    part: Literal["problems", "corpus", "demonstrations"] = "problems"
    size: int = 1000
    seed: int = 0
    count: int = 72
    parts: int = 4
    operations: list[Row] = field(default_factory=list)

    example_params: ClassVar[Row] = {"split": "train", "size": 8}

    def __post_init__(self) -> None:
        is_even = self.parts > 1 and self.parts < self.count <= MAX_COUNT and self.count % self.parts == 0
        if self.size < 1 or not is_even or (self.part == "demonstrations" and not self.operations):
            found = f"size {self.size}, count {self.count}, parts {self.parts}, {len(self.operations)} operations"
            raise InputError(f"lists cannot use {found}", hint=f"size: 1, count: 72 (at most {MAX_COUNT}), parts: 4")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, known without making the data."""
        return _COLUMNS[self.part]

    def __call__(self) -> datasets.Dataset:
        """Make the rows."""
        import datasets

        rng = random.Random(f"merging/{self.part}/{self.split}/{self.seed}/{self.count}")
        write = {"problems": self._problem, "corpus": self._document, "demonstrations": self._demonstrate}[self.part]
        return datasets.Dataset.from_list([row for _ in range(self.size) for row in write(rng)])

    def _question(self, rng: random.Random) -> str:
        while True:
            letters, length = draw(rng, self.count), self.count // self.parts
            if split_of(letters) == self.split:
                return f"sort {' '.join(letters[i : i + length] for i in range(0, self.count, length))}"

    def _problem(self, rng: random.Random) -> Iterator[Row]:
        asked = self._question(rng)
        yield {"prompt": message("user", asked), "solution": answer(asked)}

    def _document(self, rng: random.Random) -> Iterator[Row]:
        if rng.random() < 0.5:
            asked = f"sort {draw(rng, rng.randint(2, self.count // self.parts))}"
        else:
            letters = draw(rng, rng.randint(4, self.count))
            middle = len(letters) // 2
            asked = f"merge {answer(letters[:middle])} {answer(letters[middle:])}"
        # on both sides, as in the tiny world's own corpus: where a document begins and where it ends
        yield {"text": f"<eos>{asked}\n{answer(asked)}<eos>"}

    def _demonstrate(self, rng: random.Random) -> Iterator[Row]:
        for asked in self.prompts(self._question(rng)):
            yield {"prompt": message("user", asked), "completion": message("assistant", answer(asked))}

    def prompts(self, question: str) -> list[str]:
        """Return a question and all that the graph asks on the way to its answer, each once.

        The strategy itself is driven, so that the model is trained on the very prompts that it is asked with later.
        """
        from posttrain_plugins.strategies.graph_of_thoughts import GraphOfThoughts
        from posttrain_plugins.types import Completion, Generate, Problem, Score

        asked = [question]
        steps = GraphOfThoughts(operations=self.operations, scorer="errors")(Problem(message("user", question)))
        responses: Any = None
        while True:
            try:
                wave, responses = steps.send(responses), []
            except StopIteration:
                return list(dict.fromkeys(asked))
            for request in wave:
                if isinstance(request, Generate):
                    asked.append(last_user_text(request.prompt))
                    responses.append([Completion(answer(asked[-1]))] * request.n)
                elif isinstance(request, Score):
                    responses.append([1.0] * len(request.completions))


@dataclass
class Sorted:
    """Score what is written by the errors that can be told from what was asked, with no answer to compare with.

    Args:
        mode: `all` gives 1.0 where there are none, `share` takes each error from 1.0 as the share of the letters.

    Example:
        >>> sorted_list, miscounted = answer("sort caba"), answer("sort cab")
        >>> Sorted("share")(prompts=["sort caba"] * 2, completions=[sorted_list, miscounted])
        [1.0, 0.75]
    """

    mode: Literal["all", "share"] = "all"

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Score each of B completions in [0, 1]."""
        scores = []
        for prompt, completion in zip(prompts, completions, strict=True):
            asked = last_user_text(prompt)
            share = 1.0 - count_errors(asked, to_text(completion)) / max(counted(asked).total(), 1)
            scores.append(float(share == 1.0) if self.mode == "all" else max(0.0, share))
        return scores


# --- Lists and their runs --------------------------------------------------------------------------------------------


def draw(rng: random.Random, count: int) -> str:
    """Return a list of letters."""
    while True:
        letters = "".join(rng.choices(LETTERS, k=count))
        if max(Counter(letters).values()) <= MOST:
            return letters


def counted(text: str) -> Counter[str]:
    """Return how often each letter is in lists, which are written letter by letter or by runs.

    Example:
        >>> sorted(counted("merge a2b1 a1").items())
        [('a', 3), ('b', 1)]
    """
    found: Counter[str] = Counter()
    for letter, times in _RUN.findall(" ".join(word for word in text.split() if word not in WORDS)):
        found[letter] += int(times or 1)
    return found


def count_errors(asked: str, written: str) -> int:
    """Return the runs that do not come after the one before, and the letters that are missing or too many.

    Example:
        >>> [count_errors("sort caba", f"{runs}d0e0f0g0h0i0j0k0l0") for runs in ("a2b1c1", "a2c1b1", "a2b1c3", "")]
        [0, 1, 2, 4]
    """
    counts = counted(asked)
    if not _RUNS.fullmatch(written):
        return max(
            counts.total(), 1
        )  # no sorted list: all of it is missing, even where a bad thought left nothing to sort
    found = counted(written)
    disorder = sum(first >= second for first, second in pairwise(filter(str.isalpha, written)))
    return disorder + sum(((counts - found) + (found - counts)).values())


def answer(asked: str) -> str:
    """Return what is to be written.

    Example:
        >>> answer("sort caba"), answer("merge a2b1 a1")
        ('a2b1c1d0e0f0g0h0i0j0k0l0', 'a3b1c0d0e0f0g0h0i0j0k0l0')
    """
    counts = counted(asked)
    return "".join(f"{letter}{counts[letter]}" for letter in LETTERS)


def split_of(letters: str) -> Split:
    """Return the split of a list, in whatever order: one in five is `development`, one in five `exam`."""
    part = zlib.crc32("".join(sorted(letters)).encode()) % 10
    return "exam" if part < 2 else "development" if part < 4 else "train"


def message(role: str, content: str) -> list[dict[str, str]]:
    """Return a conversation of one message."""
    return [{"role": role, "content": content}]
