"""What a plugin is: where it is found, which parameters it takes, what it declares.

| file           | holds                                                                              |
|----------------|------------------------------------------------------------------------------------|
| `registry.py`  | (kind, name) -> plugin, listed without importing it                                |
| `declarations.py` | the one list of what a plugin may declare, and who reads it                       |
| `schema.py`    | the words for parameters, and whether a value fits a type                          |
| `source.py`    | what a plugin or a config class takes, read from its source                        |
| `signature.py` | the same of a live object                                                          |
| `scaffold.py`  | `plugins new`: a package with one plugin, from the files in `templates/`           |
"""
