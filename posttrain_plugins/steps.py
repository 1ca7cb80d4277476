"""Find the steps of completions; the import path of plugin authors for `text.steps`."""

from posttrain_plugins.text.steps import SEPARATOR, Aggregate, aggregate, last_tokens, split_steps, step_ends

__all__ = ["SEPARATOR", "Aggregate", "aggregate", "last_tokens", "split_steps", "step_ends"]
