"""Read and compare the answers in completions; the import path of plugin authors for `text.answers`."""

from posttrain_plugins.text.answers import (
    candidates,
    canonical,
    choose,
    equivalent,
    extract,
    majority,
    sortable,
    tally,
    vote_weights,
)

__all__ = [
    "candidates",
    "canonical",
    "choose",
    "equivalent",
    "extract",
    "majority",
    "sortable",
    "tally",
    "vote_weights",
]
