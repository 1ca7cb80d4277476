"""The tiny world: problems, authors, the strict checker, the tokenizer and the data set made of them."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from posttrain_plugins.datasets.digit_chain import DigitChain
from posttrain_plugins.errors import InputError
from posttrain_plugins.tiny_world import check, evaluate, find_expression, is_held_out, make_expression, tokenizer
from posttrain_plugins.tiny_world.checker import split_steps
from posttrain_plugins.tiny_world.task import Author, Step, format_chat, format_raw, mark_homework, solve
from posttrain_plugins.tiny_world.tokenizer import TAGS

EXPRESSION = "3|7>2<9|4"
RIGHT = "<think>3|7=4;4>2=4;4<9=4;4|4=0</think><answer>0</answer>"
CONVERSATION = [{"role": "user", "content": "3|7>2"}, {"role": "assistant", "content": "<think>3|7=4;4>2=4</think>"}]


# --- the task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"), [("3|7>2<9|4", 0), ("9<1>5|8", 3), ("0|9|9|9|9", 0), ("5>5<5|5>1", 1), ("2<7", 2)]
)
def test_expressions_are_evaluated_from_left_to_right(expression: str, value: int) -> None:
    assert evaluate(expression) == value


def test_the_same_seed_draws_the_same_expression_and_respects_the_number_of_operators() -> None:
    drawn = [make_expression(random.Random(seed), 2, 3) for seed in range(50)]
    assert drawn == [make_expression(random.Random(seed), 2, 3) for seed in range(50)]
    assert {len(expression) // 2 for expression in drawn} == {2, 3}


def test_a_careful_author_writes_the_documented_completion() -> None:
    steps = solve(EXPRESSION, random.Random(0))
    assert format_chat(steps) == RIGHT
    assert format_raw(steps) == "3|7=4;4>2=4;4<9=4;4|4=0\n0"


def test_a_sloppy_author_takes_the_larger_for_the_distance_and_goes_on_from_there() -> None:
    steps = solve(EXPRESSION, random.Random(0), Author(is_sloppy=True))
    assert format_chat(steps) == "<think>3|7=7;7>2=7;7<9=7;7|4=7</think><answer>7</answer>"
    assert mark_homework(EXPRESSION, steps) == "mark 3|7>2<9|4\n3|7=7n;7>2=7y;7<9=7y;7|4=7n"


def test_slips_come_at_about_their_rate_and_the_chain_goes_on_from_what_is_written() -> None:
    rng = random.Random(1)
    chains = [solve(make_expression(rng), rng, Author(slip_rate=0.3)) for _ in range(500)]
    steps = [step for chain in chains for step in chain]
    wrong = sum(not step.is_right for step in steps) / len(steps)
    assert 0.1 < wrong < 0.3  # a slip may hit the right value
    assert all(later.left == former.value for chain in chains for former, later in pairwise(chain))


def test_a_step_knows_whether_it_is_right() -> None:
    assert Step(3, "|", 7, 4).is_right
    assert not Step(3, "|", 7, 7).is_right


def test_one_expression_in_sixteen_is_held_out() -> None:
    rng = random.Random(0)
    share = sum(is_held_out(make_expression(rng)) for _ in range(8000)) / 8000
    assert 0.05 < share < 0.075


# --- the checker ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("completion", [RIGHT, "3|7=4;4>2=4;4<9=4;4|4=0\n0", f"  {RIGHT}\n"])
def test_a_right_completion_is_strictly_right_in_both_layouts(completion: str) -> None:
    found = check(EXPRESSION, completion)
    assert found.strict
    assert found.answer_correct
    assert found.well_formed
    assert found.steps == (True, True, True, True)
    assert found.fraction == 1.0


@pytest.mark.parametrize(
    ("completion", "steps", "answer_correct", "why"),
    [
        ("<think>3|7=4;4>2=4</think><answer>4</answer>", (True, True), False, "stops early"),
        ("<think>3|7=7;7>2=7;7<9=7;7|4=3</think><answer>3</answer>", (False, True, True, True), False, "sloppy"),
        ("<think>3|7=4;4>2=4;5<9=5;5|4=1</think><answer>1</answer>", (True, True, False, True), False, "other left"),
        ("<think>3|7=4;4>2=4;4>9=9;9|4=5</think><answer>5</answer>", (True, True, False, True), False, "operator"),
        ("<think>3|7=4;4>2=4;4<8=4;4|4=0</think><answer>0</answer>", (True, True, False, True), True, "digit"),
        ("<think>3|7=4;4>2=4;4<9=4;4|4=0</think><answer>1</answer>", (True, True, True, True), False, "answer"),
        ("<think>3|7=4;4>2=4;4<9=4;4|4=0;0|0=0</think><answer>0</answer>", (True,) * 4 + (False,), True, "too many"),
        ("<think></think><answer>0</answer>", (), True, "no steps"),
        ("<think>3|7=4;junk;4<9=4;4|4=0</think><answer>0</answer>", (True, False, False, True), True, "junk between"),
    ],
)
def test_a_wrong_completion_is_never_strictly_right(
    completion: str, steps: tuple[bool, ...], answer_correct: bool, why: str
) -> None:
    found = check(EXPRESSION, completion)
    assert found.steps == steps, why
    assert found.answer_correct is answer_correct, why
    assert not found.strict, why


def test_a_wrong_step_that_cancels_keeps_the_answer_but_not_the_strict_score() -> None:
    found = check("3|7<1>2<9", "<think>3|7=7;7<1=1;1>2=2;2<9=2</think><answer>2</answer>")
    assert found.answer_correct
    assert found.well_formed
    assert not found.strict
    assert found.fraction == 0.75


def test_the_layout_counts() -> None:
    for completion in (f"{RIGHT} ", f"{RIGHT}{RIGHT}", f"so {RIGHT}", RIGHT.replace(";", ";;")):
        found = check(EXPRESSION, completion)
        assert found.answer == "0"
        assert found.strict is (completion.strip() == RIGHT)


GARBAGE = ["", "\n", ";;;", "=", "<think>", "</answer><answer>", "<answer>\u0663</answer>", "\x00\ud800", "3|7=" * 99]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_no_text_makes_the_checker_raise(garbage: str) -> None:
    found = check(EXPRESSION, garbage)
    assert not found.strict
    assert not found.answer_correct
    assert found.fraction == 0.0


def test_random_text_never_raises_and_is_never_strictly_right() -> None:
    rng = random.Random(0)
    alphabet = [*"0123456789<>|=;\n ", *TAGS]
    for _ in range(2000):
        assert not check(EXPRESSION, "".join(rng.choices(alphabet, k=rng.randrange(40)))).strict


@pytest.mark.parametrize(
    ("prompt", "expression"),
    [
        ("3|7>2", "3|7>2"),
        ("<eos>3|7>2\n", "3|7>2"),
        ("<|user|>3|7>2<|assistant|>", "3|7>2"),
        ("1>2 is an example, solve 3|7>2.", "3|7>2"),
        ("3|7>2\n3|7=4;4>2=4", "3|7>2"),
        ("mark 3|7>2\n3|7=7n", "3|7>2"),
        ("33|7", None),
        ("hello", None),
        ("", None),
    ],
)
def test_the_problem_is_found_in_a_prompt(prompt: str, expression: str | None) -> None:
    assert find_expression(prompt) == expression


def test_steps_of_an_unfinished_completion_are_split_too() -> None:
    assert split_steps("<think>3|7=4;4>2=") == ["3|7=4", "4>2="]
    assert check(EXPRESSION, "<think>3|7=4;4>2=").steps == (True, False)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_the_tokenizer_has_64_tokens_and_gives_every_text_back() -> None:
    tok = tokenizer()
    assert len(tok) == 64
    for text in (RIGHT, "<eos>mark 3|7>2\n3|7=7n;7>2=7y<eos>", "a\n  b", "<thin <|user|>>"):
        assert tok.decode(tok(text)["input_ids"]) == text


def test_special_tokens_vanish_from_a_decoded_completion_and_tags_stay() -> None:
    tok = tokenizer()
    assert (tok.pad_token, tok.eos_token, tok.unk_token) == ("<pad>", "<eos>", "<unk>")
    ids = tok(f"<|assistant|>{RIGHT}<eos><pad>")["input_ids"]
    assert tok.decode(ids, skip_special_tokens=True) == RIGHT
    assert all(len(tok(tag)["input_ids"]) == 1 for tag in TAGS)
    assert tok("é")["input_ids"] == [tok.unk_token_id]


def test_the_chat_template_equals_the_hand_written_string() -> None:
    tok = tokenizer()
    expected = "<|user|>3|7>2<|assistant|><think>3|7=4;4>2=4</think><eos>"
    assert tok.apply_chat_template(CONVERSATION, tokenize=False) == expected
    prompt = tok.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>3|7>2<|assistant|>"
    system = [{"role": "system", "content": "be brief"}, *CONVERSATION[:1]]
    assert tok.apply_chat_template(system, tokenize=False) == "<|system|>be brief<|user|>3|7>2"


def test_the_generation_mask_covers_the_completion_and_its_eos() -> None:
    tok = tokenizer()
    encoded = tok.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tok.decode(learned) == "<think>3|7=4;4>2=4</think><eos>"


def test_the_tokenizer_survives_a_folder_it_shares_with_a_model_config(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tok = tokenizer()
    tok.save_pretrained(tmp_path)
    AutoConfig.for_model("qwen3", vocab_size=64).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(RIGHT)["input_ids"] == tok(RIGHT)["input_ids"]
    assert loaded.decode(loaded(f"{RIGHT}<eos>")["input_ids"], skip_special_tokens=True) == RIGHT
    assert loaded.chat_template == tok.chat_template
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


# --- the data set -----------------------------------------------------------------------------------------------------


def _expressions(**parameters) -> list[str]:
    return [find_expression(row["prompt"][0]["content"]) for row in DigitChain(**parameters)()]


def test_train_and_test_never_overlap_whatever_seed_and_size() -> None:
    test = {e for seed in range(3) for e in _expressions(split="test", size=200, seed=seed, min_operators=1)}
    train = {e for seed in range(3) for e in _expressions(split="train", size=1000, seed=seed, min_operators=1)}
    assert all(is_held_out(expression) for expression in test)
    assert not test & train


def test_problems_are_distinct_solvable_and_reproducible() -> None:
    data = DigitChain(size=500, seed=3)()
    assert data.to_list() == DigitChain(size=500, seed=3)().to_list()
    assert data.to_list() != DigitChain(size=500, seed=4)().to_list()
    expressions = [row["prompt"][0]["content"] for row in data]
    assert len(set(expressions)) == 500
    assert {len(expression) // 2 for expression in expressions} == {4, 5, 6}
    assert all(row["solution"] == str(evaluate(e)) for row, e in zip(data, expressions, strict=True))


def test_both_layouts_hold_the_same_problems() -> None:
    chat, raw = (DigitChain(split="test", size=20, layout=layout)() for layout in ("chat", "raw"))
    assert [f"<eos>{row['prompt'][0]['content']}\n" for row in chat] == list(raw["prompt"])
    assert chat["solution"] == raw["solution"]


def test_the_corpus_is_made_of_solved_problems_and_marked_homework() -> None:
    texts = list(DigitChain(part="corpus", size=2000)()["text"])
    assert all(text.startswith("<eos>") and text.endswith("<eos>") and text.count("<eos>") == 2 for text in texts)
    marked = [text for text in texts if text.startswith("<eos>mark ")]
    assert 0.35 < len(marked) / 2000 < 0.45
    marks = Counter(step[-1] for text in marked for step in text.removesuffix("<eos>").split("\n")[1].split(";"))
    assert set(marks) == {"y", "n"}
    assert 0.1 < marks["n"] / marks.total() < 0.4
    assert max(map(len, tokenizer()(texts)["input_ids"])) <= 64


def test_demonstrations_are_imperfect_on_purpose_and_clean_when_asked() -> None:
    def strict_share(**parameters) -> float:
        rows = DigitChain(part="demonstrations", size=1000, **parameters)().to_list()
        pairs = [(row["prompt"][0]["content"], row["completion"][0]["content"]) for row in rows]
        assert all(check(*pair).well_formed for pair in pairs)
        return sum(check(*pair).strict for pair in pairs) / len(pairs)

    assert 0.5 < strict_share() < 0.85
    assert strict_share(sloppy=0.0, slips=0.0) == 1.0
    assert strict_share(sloppy=1.0, slips=0.0) < 0.35


@pytest.mark.parametrize("part", ["problems", "corpus", "demonstrations"])
@pytest.mark.parametrize("layout", ["chat", "raw"])
def test_the_declared_columns_are_the_made_ones(part, layout) -> None:
    plugin = DigitChain(part=part, size=3, layout=layout)
    assert tuple(plugin().column_names) == plugin.columns


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"part": "pairs"}, "part"),
        ({"split": "dev"}, "split"),
        ({"layout": "html"}, "layout"),
        ({"size": 0}, "size"),
        ({"min_operators": 0}, "min_operators"),
        ({"min_operators": 5, "max_operators": 4}, "max_operators"),
        ({"sloppy": 1.5}, "sloppy"),
        ({"marked": -0.1}, "marked"),
    ],
)
def test_values_that_cannot_be_used_are_named(parameters, name: str) -> None:
    with pytest.raises(InputError, match=f"digit_chain cannot use {name}: "):
        DigitChain(**parameters)


def test_more_problems_than_there_are_is_an_error_not_a_hang() -> None:
    with pytest.raises(InputError, match="size: 301, expected at most"):
        DigitChain(size=301, min_operators=1, max_operators=1)()


def test_importing_the_tiny_world_and_its_plugins_is_light() -> None:
    modules = "posttrain_plugins.tiny_world, posttrain_plugins.datasets.digit_chain"
    code = f"import sys, {modules}; print({{'torch', 'transformers', 'datasets', 'trl', 'numpy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
