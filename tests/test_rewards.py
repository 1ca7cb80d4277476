"""The built-in rewards: hand-worked scores, plain and conversational, and the contract that they keep."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.plugins import registry
from posttrain_plugins.rewards.bleu import BLEU
from posttrain_plugins.rewards.clip import Clip
from posttrain_plugins.rewards.cosine import Cosine
from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps
from posttrain_plugins.rewards.ensemble import Ensemble
from posttrain_plugins.rewards.exact_answer import ExactAnswer
from posttrain_plugins.rewards.format import Format
from posttrain_plugins.rewards.gate import Gate
from posttrain_plugins.rewards.json_schema import JSONSchema
from posttrain_plugins.rewards.keyword import Keyword
from posttrain_plugins.rewards.language import Language
from posttrain_plugins.rewards.length import Length
from posttrain_plugins.rewards.min import Min
from posttrain_plugins.rewards.regex import Regex
from posttrain_plugins.rewards.repetition import Repetition
from posttrain_plugins.rewards.rouge import ROUGE
from posttrain_plugins.rewards.soft_overlong import SoftOverlong
from posttrain_plugins.rewards.tool_check import ToolCheck
from posttrain_plugins.rewards.weighted_sum import WeightedSum

ALL = ("bleu", "format", "json_schema", "keyword", "language", "repetition", "rouge", "tool_check")
RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
WRONG = "<think>3|7=7;7>2=7</think><answer>7</answer>"
REWARDS = [
    ExactAnswer(),
    Regex("<answer>.+</answer>"),
    Length(),
    DigitChainSteps(),
    DigitChainSteps("fraction"),
    BLEU(),
    Cosine(max_len=20, unit="chars"),
    Format(),
    JSONSchema({"type": "object"}),
    Keyword(required=["answer"], is_whole_word=False),
    Repetition(ngram_size=1),
    ROUGE(),
    SoftOverlong(max_completion_len=20, soft_punish_cache=10, unit="chars"),
]


def _messages(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)
def test_every_reward_keeps_the_contract(reward) -> None:
    texts = [RIGHT, WRONG, "", "\x00\n;;"]
    columns = {"solution": ["4"] * 4, "completion_ids": [[1]] * 4, "trainer_state": None}
    plain = reward(prompts=["3|7>2"] * 4, completions=texts, **columns)
    chat = reward(
        prompts=[_messages("user", "3|7>2")] * 4,
        completions=[_messages("assistant", text) for text in texts],
        **columns,
    )
    assert plain == chat
    assert all(type(score) is float for score in plain)
    low, high = reward.bounds
    assert all(low <= score <= high for score in plain)
    again = pickle.loads(pickle.dumps(reward))
    assert again == reward
    assert again(prompts=["3|7>2"] * 4, completions=texts, **columns) == plain
    assert reward(prompts=[], completions=[], solution=[]) == []


EXAMPLES = [ExactAnswer(), Length(), DigitChainSteps(), *(registry.load("reward", name)() for name in ALL)]


@pytest.mark.parametrize("reward", EXAMPLES, ids=lambda reward: type(reward).__name__)
def test_every_example_gets_its_score(reward) -> None:
    scores = set()
    for example in reward.examples:
        columns = {name: [value] for name, value in example.items() if name not in ("prompt", "completion", "score")}
        assert set(reward.requires_columns if hasattr(reward, "requires_columns") else ()) <= set(columns)
        assert reward(prompts=[example["prompt"]], completions=[example["completion"]], **columns) == [example["score"]]
        scores.add(example["score"])
    assert len(scores) > 1
    assert reward.bounds[1] in scores


def test_exact_answer_compares_with_the_solution() -> None:
    reward = ExactAnswer()
    assert reward(completions=[RIGHT, WRONG, "dunno"], solution=["4", "4", "4"]) == [1.0, 0.0, 0.0]


def test_exact_answer_cannot_judge_without_a_reference() -> None:
    assert ExactAnswer()(completions=[RIGHT, RIGHT], solution=[None, "4"]) == [None, 1.0]


def test_rewards_that_read_the_reference_say_so() -> None:
    assert ExactAnswer.oracle
    assert DigitChainSteps.oracle
    assert not hasattr(Regex, "oracle")
    assert not hasattr(Length, "oracle")


def test_regex_searches_or_matches_the_whole() -> None:
    texts = ["<answer>4</answer>", "so <answer>4</answer>", " <answer>4</answer>\n", "4"]
    assert Regex("<answer>.</answer>")(completions=texts) == [1.0, 1.0, 1.0, 0.0]
    assert Regex("<answer>.</answer>", full_match=True)(completions=texts) == [1.0, 0.0, 1.0, 0.0]


def test_regex_refuses_a_pattern_that_does_not_compile() -> None:
    with pytest.raises(InputError, match="regex cannot compile its pattern: '\\('"):
        Regex("(")


def test_length_decays_in_a_straight_line() -> None:
    reward = Length(max_chars=10, decay_chars=4)
    assert reward(completions=["x" * n for n in (0, 10, 11, 12, 14, 99)]) == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert Length(max_chars=2, decay_chars=0)(completions=["xx", "xxx"]) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["max_chars", "decay_chars"])
def test_length_refuses_a_negative_length(name: str) -> None:
    with pytest.raises(InputError, match=f"length cannot use {name}: -1"):
        Length(**{name: -1})


def test_digit_chain_steps_scores_strictly_by_fraction_or_by_answer() -> None:
    cancelled = "<think>3|7=7;7<1=1</think><answer>1</answer>"  # the wrong step does not change the answer
    short = "<think>3|7=4</think><answer>1</answer>"
    prompts, completions = ["3|7<1"] * 2, [cancelled, short]
    assert DigitChainSteps()(prompts, completions) == [0.0, 0.0]
    assert DigitChainSteps("fraction")(prompts, completions) == [0.5, 0.5]
    assert DigitChainSteps("answer")(prompts, completions) == [1.0, 1.0]
    assert DigitChainSteps().step_scores(prompts, completions) == [[0.0, 1.0], [1.0]]


def test_digit_chain_steps_reads_the_raw_layout_too() -> None:
    assert DigitChainSteps()(prompts=["<eos>3|7>2\n"], completions=["3|7=4;4>2=4\n4"]) == [1.0]


def test_digit_chain_steps_cannot_judge_without_a_problem() -> None:
    reward = DigitChainSteps()
    assert reward(["Hello", "3|7>2"], [RIGHT, RIGHT]) == [None, 1.0]
    assert reward.step_scores(["Hello", "3|7>2"], [RIGHT, ""]) == [[], []]


def test_digit_chain_steps_refuses_another_mode() -> None:
    with pytest.raises(InputError, match="digit_chain_steps cannot use mode: 'lax'"):
        DigitChainSteps("lax")


def test_importing_the_rewards_is_light() -> None:
    names = ("exact_answer", "regex", "length", "digit_chain_steps", "soft_overlong", "cosine", "gate", *ALL)
    modules = ", ".join(f"posttrain_plugins.rewards.{name}" for name in names)
    code = f"import sys, {modules}; print({{'torch', 'transformers', 'datasets', 'trl', 'numpy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# --- format, JSON, keywords, language, texts -------------------------------------------------------------------------


def test_format_wants_each_tag_once_in_order_with_nothing_outside() -> None:
    whole = "<think>a</think> <answer>b</answer>"
    texts = [whole, f" {whole}\n", whole + whole, f"so {whole}", "<answer>b</answer><think>a</think>", whole[:-2]]
    assert Format()(completions=texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert Format(partial=True)(completions=[whole, whole + whole, whole[:-2], ""]) == [1.0, 0.0, 0.75, 0.0]
    assert Format(is_opened=True)(completions=["a</think><answer>b</answer>", whole]) == [1.0, 0.0]
    assert Format(tags=["a"])(completions=["<a>x</a>", "<a> </a>"]) == [1.0, 0.0]


def test_json_schema_reads_the_whole_or_the_last_fence() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    fenced = 'So:\n```json\n{"age": "x"}\n```\nno:\n```\n{"age": 7}\n```\nDone.'
    texts = ['{"age": 7}', '{"age": "7"}', "{", fenced, '{"age": NaN}', "[" * 5000]
    assert JSONSchema(schema)(completions=texts) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert JSONSchema(schema, in_fence=False, well_formed=0.25)(completions=texts) == [1.0, 0.25, 0.0, 0.0, 0.0, 0.0]
    of_each = [schema, '{"type": "string"}', None]
    assert JSONSchema()(completions=['{"age": 7}', '"a"', "1"], schema=of_each) == [1.0, 1.0, None]


def test_json_schema_refuses_a_schema_that_is_none_and_data_without_one() -> None:
    with pytest.raises(InputError, match="json_schema cannot use its schema: 'text' is not valid"):
        JSONSchema({"type": "text"})
    with pytest.raises(InputError, match="json_schema has no schema"):
        JSONSchema()(completions=["{}"])


def test_keyword_takes_whole_words_of_any_case() -> None:
    reward = Keyword(required=["four", "C++"], forbidden=["maybe"])
    texts = ["FOUR and C++.", "fourteen", "four", "four C++ maybe", "four C++ maybes"]
    assert reward(completions=texts) == [1.0, 0.0, 0.5, 0.0, 1.0]
    assert Keyword(is_whole_word=False, ignore_case=False, required=["our"])(completions=["four", "FOUR"]) == [1.0, 0.0]
    assert Keyword()(completions=["a", "a"], keywords=[["a", "b"], None]) == [0.5, None]
    assert Keyword(forbidden=["no"])(completions=["yes", "no"]) == [1.0, 0.0]
    with pytest.raises(InputError, match="required and forbidden: 'a'"):
        Keyword(required=["a"], forbidden=["a"])


def test_language_counts_letters_of_prose_alone() -> None:
    english = "We add the two numbers and then we get the right answer."
    german = "Wir zählen die beiden Zahlen zusammen und erhalten das Ergebnis."
    code = "```\nfür Schleife über alle Zeilen der Tabelle und alle Spalten\n```"
    assert Language("en")(completions=[f"{english}\n{code}\n$x + y$"]) == [1.0]
    (share,) = Language("en")(completions=[f"{english}\n{german}"])
    letters = [sum(map(str.isalpha, text)) for text in (english, german)]
    assert share == letters[0] / sum(letters)
    assert Language()(completions=[german, german, "7"], language=["de", None, "de"]) == [1.0, None, None]
    with pytest.raises(InputError, match="language does not know 'xx'"):
        Language("xx")(completions=[english])
    with pytest.raises(InputError, match="expected ISO 639-1"):
        Language("English")


def test_bleu_and_rouge_take_the_nearest_of_several_references() -> None:
    texts, references = ["the cat sat", "the cat sat", "x"], [["a dog ran", "the cat sat"], "the cat ran", None]
    assert BLEU(max_ngram_order=1)(completions=texts, solution=references) == [1.0, pytest.approx(2 / 3), None]
    assert ROUGE("rouge1")(completions=texts, solution=references) == [1.0, pytest.approx(2 / 3), None]
    recall = ROUGE("rougeL", measure="recall")(completions=["the cat"], solution=["the cat sat down"])
    assert recall == [0.5]


# --- length and repetition -------------------------------------------------------------------------------------------


def test_soft_overlong_is_equation_13() -> None:
    ids = [[1] * n for n in (0, 80, 81, 90, 100, 101)]
    reward = SoftOverlong(max_completion_len=100, soft_punish_cache=20)
    assert reward(completions=[""] * 6, completion_ids=ids) == [0.0, 0.0, -0.05, -0.5, -1.0, -1.0]
    hard = SoftOverlong(max_completion_len=100, soft_punish_cache=0)
    assert hard(completions=[""] * 6, completion_ids=ids) == [0.0] * 5 + [-1.0]
    words = SoftOverlong(max_completion_len=4, soft_punish_cache=2, unit="words")
    assert words(completions=["a b", "a b c", "a b c d e"]) == [0.0, -0.5, -1.0]


def test_what_counts_tokens_says_so_where_there_are_none(tiny_model) -> None:
    reward = SoftOverlong(max_completion_len=4, soft_punish_cache=2)
    with pytest.raises(InputError, match="counts tokens, but none are given outside a trainer"):
        reward(completions=["3|7"])
    named = SoftOverlong(max_completion_len=4, soft_punish_cache=2, tokenizer=str(tiny_model))
    assert named(completions=["3|", "3|7", "3|7>2"]) == [0.0, -0.5, -1.0]


@pytest.mark.parametrize("maker", ["get_soft_overlong_punishment", "get_repetition_penalty_reward"])
def test_length_and_repetition_give_what_trl_gives(maker: str) -> None:
    import trl.rewards

    ids = [[1, 2, 3, 1, 2, 3], [5] * 30, [], [1, 2]]
    if maker == "get_soft_overlong_punishment":
        options = {"max_completion_len": 20, "soft_punish_cache": 16}
        ours: object = SoftOverlong(**options)
    else:
        options = {"ngram_size": 2, "max_penalty": -0.5}
        ours = Repetition(**options, unit="tokens")
    theirs = getattr(trl.rewards, maker)(**options)
    assert ours(completions=[""] * 4, completion_ids=ids) == theirs(completion_ids=ids)


def test_cosine_gives_what_trl_gives_and_the_papers_penalty() -> None:
    texts, ids = ["<answer>4</answer>", "<answer>5</answer>"] * 3, [[1] * n for n in (0, 0, 25, 25, 90, 90)]
    found = Cosine(max_len=50)(["?"] * 6, texts, solution=["4"] * 6, completion_ids=ids)
    assert found == pytest.approx([1.0, -1.0, 0.75, -0.75, 0.5, -0.5])
    over = Cosine(max_len=50, exceeded=-10.0)
    assert over(["?"] * 6, texts, solution=["4"] * 6, completion_ids=ids)[-2:] == [-10.0, -10.0]
    assert over.bounds == (-10.0, 1.0)
    assert over.oracle


def test_cosine_takes_any_reward_for_right() -> None:
    def long(completions, **columns):
        return [None if not text else float(len(text) > 2) for text in completions]

    reward = Cosine(max_len=4, correct=long, unit="chars")
    assert reward(["?"] * 3, ["", "abcd", "ab"]) == [None, 0.5, -0.75]
    assert not reward.oracle
    with pytest.raises(InputError, match="cosine has no reward 'correct'"):
        Cosine(max_len=4, unit="chars")(["?"], ["a"])


# --- combinators -----------------------------------------------------------------------------------------------------


def _length(completions, **columns):
    return [None if text == "?" else float(len(text)) for text in completions]


async def _third(completions, third, **columns):
    return list(third)


def test_combinators_combine_and_keep_none_apart() -> None:
    prompts, texts, third = ["p"] * 3, ["ab", "?", "abcd"], [3.0, 1.0, None]
    given = {"prompts": prompts, "completions": texts, "third": third}
    assert WeightedSum([_length, _third], weights=[1.0, -0.5])(**given) == [0.5, None, None]
    assert WeightedSum([_length, _length])(**given) == [4.0, None, 8.0]
    assert Min([_length, _third])(**given) == [2.0, None, None]
    assert Clip(_length, high=3.0)(**given) == [2.0, None, 3.0]
    assert Clip(_length, low=0.0, high=1.0, scale=-0.5, shift=2.0)(**given) == [1.0, None, 0.0]
    assert Ensemble([_length, _third], penalty=1.0)(**given) == [2.25, 1.0, 4.0]


def test_gate_shows_the_reward_only_what_passed() -> None:
    seen = []

    def noted(prompts, completions, third, trainer_state, **columns):
        seen.append((prompts, completions, third, trainer_state))
        return [0.5] * len(completions)

    gate = Gate(_length, noted, threshold=3.0, otherwise=-1.0)
    given = {"prompts": list("pqrs"), "completions": ["ab", "?", "abcd", "abc"], "third": [1, 2, 3, 4]}
    assert gate(**given, trainer_state="state") == [-1.0, None, 0.5, 0.5]
    assert seen == [(["r", "s"], ["abcd", "abc"], [3, 4], "state")]
    assert gate(["p"], ["a"], third=[1], trainer_state=None) == [-1.0]
    assert len(seen) == 1


def test_combinators_say_what_their_parts_say() -> None:
    for made in (WeightedSum([_length, ExactAnswer()]), Gate(ExactAnswer(), _length), Min([ExactAnswer()])):
        assert made.oracle
        assert not made.holds_model
    assert not Clip(_length).oracle
    assert Clip(_length, low=0.0, high=2.0).bounds == (0.0, 2.0)


def test_combinators_refuse_what_does_not_go_together() -> None:
    for refused in (lambda: WeightedSum([]), lambda: Min([]), lambda: Clip(_length, low=2.0)):
        with pytest.raises(InputError):
            refused()
    with pytest.raises(InputError, match="weighted_sum has 1 weights for 2 rewards"):
        WeightedSum([_length, _length], weights=[1.0])
    with pytest.raises(PluginBroken, match="reward '_third' gave 1 scores, expected 2"):
        Min([_third])(["p"] * 2, ["a"] * 2, third=[1.0])


# --- tools, tasks with a verifier, a language model ------------------------------------------------------------------

ADD = {"name": "add", "arguments": {"a": 1, "b": [2]}}
TAGGED = '<tool_call>\n{"name": "add", "arguments": {"b": [2], "a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    "completion",
    [
        TAGGED,
        f"I add them. {TAGGED} Done.",
        "add(a=1, b=[2])",
        "So:\n```python\n[add(b=[2], a=1)]\n```",
        '```json\n{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": [2]}"}\n```',
        [{"role": "assistant", "content": TAGGED}],
        [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": ADD}]}],
    ],
)
def test_tool_check_reads_calls_in_every_layout(completion) -> None:
    assert ToolCheck()(completions=[completion] * 2, solution=[[ADD], '[{"name": "add"}]']) == [1.0, 0.0]


def test_tool_check_wants_the_right_tools_and_nothing_else() -> None:
    other = {"name": "stop", "arguments": {}}
    texts = ["add(a=1, b=[2])\nstop()", "stop()\nadd(a=1, b=[2])", "add(a=1, b=[2])", "stop()\nstop()", "add(a=x)", ""]
    assert ToolCheck()(completions=texts, solution=[[ADD, other]] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert ToolCheck(is_ordered=True)(completions=texts[:2], solution=[[ADD, other]] * 2) == [1.0, 0.0]
    assert ToolCheck()(completions=["I would not.", "stop()", "x"], solution=[[], [], None]) == [1.0, 0.0, None]
    assert ToolCheck()(completions=["<tool_call>{</tool_call>"], solution=[[]]) == [0.0]
    with pytest.raises(InputError, match="tool_check cannot read its reference: 'add'"):
        ToolCheck()(completions=["x"], solution=["add"])


def test_tool_check_gives_the_share_of_toolrl() -> None:
    # a name (1), an argument name of two (1/2), its value (1), of a name, the argument names and two values (4)
    texts = ["add(a=1)", "add(a=1, b=[3])", "sub(a=1, b=[2])", "add(a=1, b=[2])\nstop()", "add(a=1, b=[2])"]
    found = ToolCheck(partial=True)(completions=texts, solution=[[ADD]] * 5)
    assert found == pytest.approx([2.5 / 4, 3 / 4, 0.0, 3.5 / 4, 1.0])


def test_reasoning_gym_makes_problems_and_judges_their_answers() -> None:
    pytest.importorskip("reasoning_gym")
    problems = registry.load("dataset", "reasoning_gym")("leg_counting", size=3)()
    assert problems.column_names == ["prompt", "solution", "entry"]
    rows = problems.to_list()
    assert rows == registry.load("dataset", "reasoning_gym")("leg_counting", size=3)().to_list()
    reward = registry.load("reward", "reasoning_gym")()
    texts = [f"<answer>{rows[0]['solution']}</answer>", "<answer>-1</answer>", "no idea, sorry, really none"]
    entries = [rows[0]["entry"]] * 3
    assert reward(completions=texts, entry=entries) == [1.0, 0.0, 0.0]
    assert reward(completions=[[{"role": "assistant", "content": texts[0]}]], entry=entries[:1]) == [1.0]
    assert reward(completions=texts[:1], entry=[None]) == [None]
    assert pickle.loads(pickle.dumps(reward)) == reward


def test_reasoning_gym_tells_its_tasks_and_refuses_a_wrong_config() -> None:
    pytest.importorskip("reasoning_gym")
    made = registry.load("dataset", "reasoning_gym")
    with pytest.raises(InputError) as caught:
        made("leg_count")()
    assert "leg_counting" in str(caught.value.hint)
    with pytest.raises(InputError, match="refuses its config"):
        made("leg_counting", size=1, config={"legs": 3})()


def test_perplexity_is_the_mean_probability_of_the_tokens(tiny_model) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reward = registry.load("reward", "perplexity")(str(tiny_model), batch_size=2, device="cpu")
    prompts, completions = ["<eos>3|7>2\n", "<eos>4>1\n", "<eos>9|1\n"], ["3|7=4;4>2=4\n4", "", "9"]
    found = reward(prompts=prompts, completions=completions)
    assert found[1] is None
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    for i in (0, 2):
        head, whole = (
            tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            for text in (prompts[i], prompts[i] + completions[i])
        )
        with torch.no_grad():
            labels = whole.masked_fill(torch.arange(whole.shape[1]) < head.shape[1], -100)
            loss = model(input_ids=whole, labels=labels).loss
        assert found[i] == pytest.approx(float(torch.exp(-loss)), rel=1e-5)
    logs = registry.load("reward", "perplexity")(str(tiny_model), log=True, device="cpu")
    assert logs(prompts[:1], completions[:1])[0] == pytest.approx(float(torch.tensor(found[0]).log()), rel=1e-5)
    assert pickle.loads(pickle.dumps(reward))._model is None
    assert reward.count_tokens(prompts[:1], completions[:1]) == len(tokenizer(prompts[0] + completions[0]).input_ids)
