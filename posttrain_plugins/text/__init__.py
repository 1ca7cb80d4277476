"""What rewards, strategies, trainers and reports share about texts: prompts, steps, answers, units of length.

A prompt or completion, plain or conversational, becomes text; a text is cut into steps or units, or its answer is read
and compared with others. Authors of plugins import this room as `posttrain_plugins.text`, `.answers` and `.steps`.

| file             | holds                                                                                          |
|------------------|------------------------------------------------------------------------------------------------|
| `messages.py`    | prompts and completions as text, and prompts made longer: a prefill, a paragraph, a template   |
| `reward_input.py` | the tokens that a reward model reads, in training, in use and when it is measured             |
| `steps.py`       | where a step of a completion ends, and one score out of the scores of its steps                |
| `units.py`       | a completion as tokens, words or characters, for rewards of length and repetition              |
| `actions.py`     | an agent's action in a completion, and the arguments of a tool call                            |
| `readers.py`     | the answer of a completion, by the name of a reader; where a thought ends                      |
| `prose.py`       | what a label names, what is set bold, what a calculation or a closing sentence comes to        |
| `answer_kinds.py` | what an answer is: number, quantity, list, set, interval, matrix, equation, choice, words     |
| `quantities.py`  | the unit or currency behind a number                                                           |
| `expressions.py` | expressions parsed, LaTeX and plain text                                                       |
| `rational_functions.py` | expressions compared exactly, as quotients of polynomials                               |
| `equality.py`    | when two answers mean the same                                                                 |
| `equivalence.py` | computer algebra in processes with a limit: sympy for expressions, `math_verify` for texts     |
| `answers.py`     | answers read, compared and counted in votes; candidates and results from them                  |
| `yaml12.py`      | plain scalars of YAML 1.2                                                                      |
"""

from posttrain_plugins.text.messages import (
    Conversation,
    ask_about,
    extend_question,
    fingerprint,
    in_format_of,
    is_conversational,
    last_user_text,
    prefill,
    render,
    replace_question,
    to_messages,
    to_text,
)

__all__ = [
    "Conversation",
    "ask_about",
    "extend_question",
    "fingerprint",
    "in_format_of",
    "is_conversational",
    "last_user_text",
    "prefill",
    "render",
    "replace_question",
    "to_messages",
    "to_text",
]
