"""Read a recipe: a YAML file and its parents -> a document of plain values, each with its place.

| file | holds |
|---|---|
| `packaged.py` | recipes by the names under which installed packages carry them |
| `document.py` | YAML 1.2 with places, `extends`, overrides, merge keys; nothing is checked but the YAML itself |
| `secrets.py` | what in a recipe opens a door, by its name or its form |
"""
