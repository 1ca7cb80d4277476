"""What people decided: the questions, an append-only ledger of answers, and the training data that they make.

No server, no torch: a stage, a page and a script read and write the same files.

| file           | holds                                                                          |
|----------------|--------------------------------------------------------------------------------|
| `item.py`      | what is asked, made of a data set's rows and known by its content; an answer   |
| `ledger.py`    | the file of decisions: one writer, each on disk before it is acknowledged      |
| `questions.py` | the items that a stage asks, in a folder where a page finds them               |
| `counted.py`   | which decisions count, and whether there are enough                            |
| `formats.py`   | decisions -> the rows that TRL's trainers read                                 |
| `agreement.py` | how far annotators agree                                                       |
| `bias.py`      | whether an annotator prefers a place on the screen                             |
| `gold.py`      | questions whose answer is known                                                |
"""
