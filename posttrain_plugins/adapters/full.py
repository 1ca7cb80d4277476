"""Full fine-tuning: every parameter is trained. No paper."""

from __future__ import annotations

__all__ = ["full"]


def full() -> None:
    """Train every parameter; TRL gets no PEFT config.

    Returns:
        None, which is what TRL's `peft_config` means by full fine-tuning.

    Example:
        >>> full() is None
        True
    """
    return None  # no object of ours: plain TRL takes this very value


# said by the plugin, since the check, which asks for memory and learning rate, does not call it
full.is_full = True  # type: ignore[attr-defined]
