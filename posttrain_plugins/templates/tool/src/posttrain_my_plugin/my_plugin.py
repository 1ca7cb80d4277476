"""`my_plugin`: say here what a model may do with it."""

__all__ = ["my_plugin"]

FACTS = {"red": "long waves", "blue": "short waves"}


def my_plugin(word: str) -> str:
    """Look a word up.

    Args:
        word: what to look up, one word.
    """
    if word.strip().lower() not in FACTS:
        raise ValueError(f"no entry for {word!r}")  # the model is told, and may try another word
    return FACTS[word.strip().lower()]


my_plugin.examples = ({"arguments": {"word": "red"}, "answer": "long waves"},)
