"""Reports that people read: pages of HTML that stand alone, and what two runs differ in.

A page loads nothing, and nothing runs on it but what this room wrote; every text of a model or a person is shown as
text. Nothing here trains or loads a model.

| file                                               | holds                                                     |
|----------------------------------------------------|-----------------------------------------------------------|
| `page.py`, `masking.py`, `words.py`                | a page and its policy; secrets taken out; figures as text |
| `run_page.py`, `live.py`                           | a run as a page, and that page while the run works        |
| `chain.py`, `details.py`, `texts.py`, `searches.py` | what stands on it, section by section                    |
| `curves.py`, `tail.py`, `rollouts.py`, `problems.py` | what is read for it, and chosen from                    |
| `results_json.py`                                  | the same figures for a program                            |
| `compare.py`, `compare_page.py`                    | two runs: what differs, and what that changed             |
| `trace_view.py`, `trace_tree.py`, `trace_page.py`  | a trace: read, on the terminal, as a page                 |

`static/` holds styles and scripts: ours, and uPlot 1.6.32 (MIT) with its licence.
"""
