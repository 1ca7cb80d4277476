"""What adapter plugins need beyond PEFT: a tuner type of our own, and configs that also set up the trainer.

A config's `prepare(trainer)`, where it has one, is called once, when the trainer stands and before it trains.
"""
