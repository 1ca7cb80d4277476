"""What a plugin is: where it is found, what it declares, which parameters it takes, and how a first one is written.

| file              | holds                                                                              |
|-------------------|------------------------------------------------------------------------------------|
| `registry.py`     | (kind, name) -> plugin, listed without importing it                                |
| `declarations.py` | the one list of what a plugin may declare, and who reads it                        |
| `schema.py`       | parameters: names, types, defaults, and whether a value fits a type                |
| `signature.py`    | the parameters and declarations of a live object                                   |
| `source.py`       | the same, read from a source file that is not imported                             |
| `tools.py`        | what a tool tells a model of itself, and what is missing of that                   |
| `scaffold.py`     | `plugins new`: a package with one plugin, from the files in `templates/`           |
"""
