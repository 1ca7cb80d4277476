"""The page on which people decide: writes, picks, ranks, accepts, or finds the first wrong step. Blind, by keyboard.

What they decide stands in a ledger (`decisions/`) before they see the next question. One command, one process, any
number of people.

| file          | holds                                                                        |
|---------------|------------------------------------------------------------------------------|
| `work.py`     | a ledger, a port, perhaps a model, and the page: from the start to the end   |
| `sources.py`  | what a SOURCE of the command line means                                      |
| `feed.py`     | a model that writes answers ahead of the people                              |
| `desk.py`     | gives items out, takes decisions in                                          |
| `assign.py`   | who is asked what; leases                                                    |
| `scratch.py`  | leases and drafts on disk                                                    |
| `shown.py`    | what of an item reaches the browser, and in which order                      |
| `door.py`     | who may come in: the token                                                   |
| `app.py`      | the routes; the only module that imports FastAPI                             |
| `server.py`   | the process that serves it                                                   |
| `page.py`     | the page; its HTML, style and script stand in `static/`                      |
| `summary.py`  | what the decisions come to                                                   |

Importing this package imports neither FastAPI nor uvicorn nor torch.
"""

from posttrain_plugins.annotate.work import AnswersAhead, ask_people

__all__ = ["AnswersAhead", "ask_people"]
