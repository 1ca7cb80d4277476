"""Text: messages and completions as strings, steps, answers and their equality, units of length."""

from posttrain_plugins.text.messages import *  # noqa: F403
