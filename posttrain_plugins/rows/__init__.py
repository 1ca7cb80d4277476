"""Rows of data: from a file with the values that stand in it, in TRL's columns, and of a form that a stage can take.

| file | holds |
|---|---|
| `read.py` | JSONL, JSON, CSV and text files, read without guessing types; rows as a `datasets.Dataset` |
| `formats.py` | rows of well-known data sets, turned into TRL's columns by name |
| `shape.py` | the first row that a trainer could not take, and what mends it |
"""
