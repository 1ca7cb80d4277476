"""What is made public of a run: a card that says how a model was made and how sure its figures are, and the push.

| file          | holds                                                        |
|---------------|--------------------------------------------------------------|
| `card.py`     | the card of an exported model, from the manifests of its run |
| `origins.py`  | what is known of bases and data: names, revisions, licences  |
| `markdown.py` | texts of others in Markdown, where they stay text            |
| `recipe.py`   | the recipe of a run without secrets                          |
| `push.py`     | the listed files of an export, to a repository of the Hub    |
"""
