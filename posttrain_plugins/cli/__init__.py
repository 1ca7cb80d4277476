"""The command line, `posttrain`: parsing and printing only.

What takes long to import (torch, and our own `api` above it) is imported within the command that needs it: `--help` has
to answer at once.

| file                                                | holds                                                    |
|-----------------------------------------------------|----------------------------------------------------------|
| `commands.py`, `lazy.py`                            | the entry point; commands built when they are asked for  |
| `recipes.py`                                        | the commands on recipes                                  |
| `ask.py`, `evaluate.py`, `serve.py`, `annotate.py`  | a command each                                           |
| `schema.py`, `doctor.py`, `report.py`               | likewise                                                 |
| `plugins.py`                                        | the commands on plugins                                  |
| `rewards.py`, `reward_tables.py`                    | the commands on rewards, and their tables                |
| `options.py`, `output.py`                           | the options that commands share, and where they write    |
| `runs.py`, `run_display.py`, `progress_bar.py`      | a run and its results; what is shown while it works      |
| `storage.py`                                        | the runs folder: listed, verified, pruned                |
| `watch.py`, `watch_view.py`                         | a run from another terminal                              |
| `stage_table.py`, `sparkline.py`                    | the stages in as many lines as there are; a curve in one |
| `tables.py`, `loss_masks.py`                        | results, plans and plugins; which tokens carry loss      |
| `memory_tables.py`                                  | a plan's steps, time and memory                          |
"""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from posttrain_plugins.cli import commands

    commands.main()
