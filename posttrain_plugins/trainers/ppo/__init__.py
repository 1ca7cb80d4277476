"""PPO on TRL's `GRPOTrainer`: GRPO samples and scores, its advantages are replaced, and a value loss is added.

Between a batch of prompts and an optimizer step:

1. `PPOTrainer._generate_and_score_completions` lets GRPO sample a completion of each prompt, take log-probabilities of
   policy and reference, and call the rewards. `process_rewards.stepwise` keeps what some of them say of each step, and
   an adapter on the policy's own base judges as a `SharedReward`.
2. Each pass of the policy gives values too: `Critic` has put a value head into the model's tree, and `WithValues` asks
   for them. A critic that is an adapter of its own is reached by a `Route`.
3. `rollout.token_advantages` makes of scores, step scores and the KL to the reference what each token earns, and of
   that advantages and returns, by the formulas of `advantages.py`.
4. GRPO keeps the rollout and hands it out in batches, `num_iterations` times each. `PPOTrainer._compute_loss` lets GRPO
   compute the clipped policy loss with these advantages, and adds the clipped value loss.
5. `WithCritic` has given the critic's parameters their learning rate, and saves and loads them beside the policy.

To read PPO: `trainer.py`, then `rollout.py`, then `advantages.py`; `critic.py` where the values come from.

| file                 | holds                                                                                    |
|----------------------|------------------------------------------------------------------------------------------|
| `config.py`          | `PPOConfig`: GRPO's arguments, and what PPO has beside them                              |
| `rules.py`           | its choices, and all that PPO refuses or warns of                                        |
| `trainer.py`         | `PPOTrainer`: which methods of GRPO's are extended, and how                              |
| `rollout.py`         | from a rollout to its tokens' advantages: where the tensors come from, what is logged    |
| `advantages.py`      | the formulas, as pure functions of tensors                                               |
| `process_rewards.py` | scores of steps, put at the tokens where the steps end                                   |
| `return_scale.py`    | running mean and deviation of returns, for a critic that learns in such units            |
| `critic.py`          | value head, critic, and what a trainer with one optimizes and saves; OREO's too          |
| `critic_start.py`    | value models, reward models and critics that a critic starts from                        |
| `route.py`           | which adapter of a shared base a pass goes through                                       |
| `shared_reward.py`   | a reward model that is an adapter on the policy's base                                   |
| `critic_export.py`   | a saved critic as a token classifier, for the stage `export`                             |
"""
