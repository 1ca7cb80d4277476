"""Answers in completions: reading and comparing them; the import path of plugin authors for `text.answers`."""

from posttrain_plugins.text.answers import *  # noqa: F403
