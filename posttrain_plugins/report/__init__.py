"""Reports that people read: pages of HTML that stand alone, and what two runs differ in.

A page loads nothing, and nothing runs on it but what this room wrote; every text of a model or a person is shown as
text. Nothing here trains or loads a model.

| file                                              | holds                                                      |
|---------------------------------------------------|------------------------------------------------------------|
| `page.py`                                         | a page: its policy, its colours, texts and JSON within it  |
| `trace_view.py`, `trace_tree.py`, `trace_page.py` | a trace: read, on the terminal, as a page                  |
"""
