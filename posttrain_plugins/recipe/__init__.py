"""A recipe, from its YAML to the artifacts of its stages.

A file goes through these rooms in this order: `read` gives plain values, each with its place; `check` gives a frozen
`Recipe`, or all mistakes at once; `plan` says which stages must run; `run` runs and publishes them. `check` never
imports `plan` or `run`. What all of them need lies beside them.

| file or folder | holds |
|---|---|
| `spec.py` | the checked recipe: frozen dataclasses, every name resolved to what it stands for |
| `files.py` | what a data file or a model folder tells at a glance, without loading it |
| `handoff.py` | what one stage hands to the next: tokenizer, template, EOS, adapters; recorded and compared |
| `build.py` | a plugin and its parameters -> its object |
| `plugin_schema.py` | what a plugin takes, needs of its data, and says of its columns |
| `read_source.py` | what of a Python file counts, kept by its content from process to process |
| `source_hash.py` | a plugin's source as a hash, with what it imports from its own package |
| `lineage.py` | what each training stage starts from, merges, freezes, trains and is held to |
| `read/` | YAML -> values with places; packaged recipes by name |
| `check/` | values -> `Recipe` |
| `plan/` | `Recipe` -> keys, store, which stages must run |
| `describe/` | what can be written in a recipe, for people and for editors |
| `run/` | a plan -> artifacts; names that stand outside any recipe |
"""
