"""Reward plugins, one file each: a function of prompts and completions that gives each completion a score, or None.

Each is called as TRL calls a reward, with B prompts, B completions (plain or conversational), and the columns of the
data set as lists of B. Docstrings say only what a reward adds to that.

| file | holds |
|---|---|
| | **against a reference answer or the task's own checker** |
| `exact_answer.py`, `math.py` | the answer in the completion is the reference: as text, by computer algebra |
| `bleu.py`, `rouge.py` | how much of a reference text is there again |
| `code.py` | unit tests pass, in the sandbox |
| `tool_check.py` | the right tools are called with the right arguments |
| `digit_chain_steps.py`, `reasoning_gym.py` | the checkers of the tiny world and of Reasoning Gym |
| | **by the form of the text alone** |
| `format.py`, `regex.py`, `json_schema.py`, `keyword.py`, `language.py` | tags, pattern, schema, words, language |
| `length.py`, `soft_overlong.py`, `repetition.py` | how long it is, and how often it says the same |
| | **by a model** |
| `reward_model.py`, `process_reward_model.py`, `value_model.py` | of a whole, of its steps, of what a critic expects |
| `perplexity.py`, `judge.py` | a language model's probability; a language model that is asked |
| | **made of other rewards** (`nested_rewards.py` calls and combines them) |
| `ensemble.py`, `min.py`, `weighted_sum.py` | the mean, the least and the sum of several |
| `gate.py`, `clip.py`, `cosine.py` | one behind another, within bounds, by length |
"""
