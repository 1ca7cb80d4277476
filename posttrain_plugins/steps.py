"""Steps of completions; the import path of plugin authors for `text.steps`."""

from posttrain_plugins.text.steps import *  # noqa: F403
