"""Data-set plugins, one file each: a call with parameters makes a `datasets.Dataset` in one of TRL's formats.

| file               | holds                                                                           |
|--------------------|---------------------------------------------------------------------------------|
| `digit_chain.py`   | the tiny world: problems, documents to pretrain on, demonstrations to imitate   |
| `mix.py`           | several data sets in one, by share (replay)                                     |
| `reasoning_gym.py` | problems of the library Reasoning Gym, for its own verifier                     |
"""
