"""What adapter plugins need beyond PEFT: a tuner type of our own, and configs that also set up the trainer.

A config's `prepare(trainer)`, where it has one, is called once, when the trainer stands and before it trains.

| module            | holds                                                                    |
|-------------------|--------------------------------------------------------------------------|
| `adalora.py`      | PEFT's AdaLoRA with its rank allocator called in any trainer             |
| `bottleneck.py`   | bottleneck adapters (Houlsby, Pfeiffer, parallel) as a PEFT type         |
| `lora_plus.py`    | a learning rate of its own for the B matrices of a LoRA                  |
| `registration.py` | a type from outside PEFT under PEFT's own registration                   |
"""
