"""Stage plugins, one file each, reached by name only; those that train are short, because they delegate to TRL.

A stage is given models, data and rewards by the fields that its class annotates, and makes one thing that later stages
name: a model, a reward, a data set, or figures. In the order in which a recipe usually has them:

| file                                                  | makes                                                  |
|-------------------------------------------------------|--------------------------------------------------------|
| `gguf.py`, `random_init.py`, `pretrain.py`            | a base model                                           |
| `sft.py`, `multi_adapter_sft.py`                      | a model from demonstrations; one adapter for each task |
| `sample.py`                                           | a data set of a model's completions that rewards judge |
| `annotate.py`                                         | a data set of what people decide                       |
| `reward.py`, `ranking.py`, `prm.py`                   | a reward: on pairs, on rankings, on steps              |
| `value.py`                                            | a value model: what a begun completion is worth        |
| `dpo.py`, `kto.py`, `cpo.py`, `orpo.py`               | a model from pairs, or from good and bad completions   |
| `listwise_dpo.py`, `online_dpo.py`                    | a model from rankings, and from pairs that it draws    |
| `oreo.py`                                             | a model and a critic from saved completions            |
| `grpo.py`, `rloo.py`, `ppo.py`                        | a model from rewards of its own completions            |
| `distill.py`                                          | a model from a teacher                                 |
| `combine.py`, `merge.py`, `export.py`                 | one adapter of several, a plain model, a model to give |
| `evaluate.py`                                         | figures                                                |
"""
