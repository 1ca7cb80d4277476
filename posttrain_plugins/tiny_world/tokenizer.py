"""The tokenizer of the tiny world: 64 tokens, one per character, and a chat template.

The four tags are tokens but **not** special: TRL decodes completions with `skip_special_tokens=True` before a reward
sees them, and the tags are what a format reward looks for. The template puts `<eos>` after the assistant's turn and
`{% generation %}` around both, so `assistant_only_loss` teaches the model to stop. No paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["CHARACTERS", "CHAT_TEMPLATE", "MAX_TOKENS", "SPECIAL_TOKENS", "TAGS", "base_tokenizer", "tokenizer"]

SPECIAL_TOKENS = ("<pad>", "<eos>", "<unk>", "<|system|>", "<|user|>", "<|assistant|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = "0123456789<>|=;\n abcdefghijklmnopqrstuvwxyz.,:?!+-*/()"
MAX_TOKENS = 256  # four times the longest text of problems of the default length

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' -}}{%- generation -%}{{- message['content'] + '<eos>' -}}{%- endgeneration -%}"
    "{%- else -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; nothing is downloaded and the result is always the same.

    Returns:
        A fast tokenizer of 64 tokens with pad, EOS and unknown token, and a chat template.

    Example:
        >>> tokenizer()("<think>3|7=4")["input_ids"]
        [6, 13, 22, 17, 23, 14]
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # `WordLevel` on single characters, not BPE: the number of tokens of a text is known before it is tokenised, and a
    # step always ends at a token of its own.
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *TAGS, *CHARACTERS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()  # without it, `decode` puts spaces between the characters
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    # Not special, or TRL would take them out of the text before a reward of the format sees it.
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=list(SPECIAL_TOKENS[3:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,  # it would turn "a ." into "a."
    )


def base_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer of a base model, without a chat template; SFT gives it one (`chat_template` of the stage).

    Example:
        >>> base_tokenizer().chat_template is None
        True
    """
    made = tokenizer()
    made.chat_template = None
    return made
