"""The command line, `posttrain`: parsing and printing only.

| module                                            | holds                                                    |
|---------------------------------------------------|----------------------------------------------------------|
| `commands.py`                                     | the entry point, and the commands on recipes             |
| `ask.py`, `evaluate.py`, `serve.py`, `schema.py`, `doctor.py` | a command each                               |
| `plugins.py`                                      | the commands on plugins                                  |
| `rewards.py`, `reward_tables.py`                  | the commands on rewards, and what they print             |
| `options.py`, `consoles.py`                       | what they take alike, and where they write               |
| `runs.py`, `display.py`, `bar.py`                 | what is seen while something runs                        |
| `tables.py`, `masks.py`                           | results, plans and plugins; which tokens carry loss      |
| `trace_view.py`, `trace_tree.py`, `trace_page.py` | a trace: read, on the terminal, as a page                |
"""

__all__ = ["main"]


def main() -> None:
    """The entry point of `posttrain`."""
    from posttrain_plugins.cli import commands

    commands.main()
