"""Describe what can be written in a recipe.

| file | holds |
|---|---|
| `catalogue.py` | every plugin and one in full, for `plugins list` and `plugins show` |
| `json_schema.py` | JSON Schema of recipes with all installed plugins, for editors |
"""
