"""How a training stage runs one of TRL's trainers, and the trainers that TRL lacks.

A stage calls `training.train`. That asks `start` for model, adapter, quantization and tokenizer as TRL takes them,
builds the config and the trainer as a plain script would, lets the adapter set it up, puts a `watch` on it, trains from
the newest checkpoint, and saves what the next stage reads. Trainers of our own subclass TRL's and copy no method; what
they touch below TRL's, PEFT's and transformers' public names stands in `compat`.

| file                                          | holds                                                           |
|-----------------------------------------------|-----------------------------------------------------------------|
| `training.py`                                 | one call that builds, trains, saves and reports                 |
| `start.py`                                    | where a stage starts: model, adapter, quantization, template    |
| `watch.py`                                    | figures, NaN, the wish to stop, and checkpoints, step by step   |
| `memory.py`                                   | peak memory of a training                                       |
| `learnable.py`                                | rows, classes and scores that there are to learn from, and none |
| `resume_state.py`                             | what a checkpoint has to hold beside what the trainers save     |
| `compat.py`                                   | every private name of TRL, PEFT and transformers that we touch  |
| `experimental.py`                             | TRL's experimental trainers, called like its stable ones        |
| `loss_masks.py`                               | which tokens a stage learns from, seen before it runs           |
| `stage_rules.py`                              | what stages refuse and warn of, asked before they run too       |
| `trackers.py`                                 | `report_to`: a run for each stage, by threads of their own      |
| `tool_use.py`, `tool_rules.py`                | tools in training: limits, templates; what is refused of them   |
| `saved_rollouts.py`, `strategy_rollouts.py`   | what an RL stage sampled, as a data set; rollouts by a strategy |
| `trajectory.py`                               | a strategy's conversation as tokens, and which of them it wrote |
| `vllm_server.py`, `vllm_rules.py`             | a vLLM server for the rollouts of one stage; its options        |
| `ppo/`                                        | PPO, REINFORCE, REINFORCE++ and ReMax on `GRPOTrainer`          |
| `shared_prompts.py`, `prompt_layout.py`       | a prompt computed once for its completions; the ways to do so   |
| `engine_rollouts.py`                          | completions drawn by our own decoding                           |
| `one_base.py`                                 | GRPO and RLOO with reward models on the policy's base           |
| `process_grpo.py`                             | GRPO whose advantages are of steps                              |
| `held_sft.py`                                 | SFT with a KL penalty to the model that it starts from          |
| `oreo.py`                                     | policy and value function from saved trajectories               |
| `prm.py`                                      | process reward models                                           |
| `value.py`, `value_figures.py`                | value models from saved trajectories; calibration, what is told |
| `ranking.py`, `listwise_dpo.py`               | reward models and DPO on rankings                               |
| `encoded_rows.py`                             | what those on own columns share: rows as tokens, padding             |
| `multi_adapter.py`                            | several adapters on one base, each on its task's rows           |
| `random_model.py`                             | a new model with random weights                                 |
"""
