"""Strategy plugins, one file each: how to spend compute at inference.

A strategy is a generator. It yields requests for completions, scores or tool calls, is sent the responses of the
engine, and returns a result; it never sees a backend or a reference answer. Plugins do not import one another: what
the searches share lies in `search/`, what all share in `text/`. Start with `greedy.py`, then `self_consistency.py`;
`prm_beam_search.py` is the shortest search, `mcts.py` the longest.

| file                                                                   | holds                                      |
|------------------------------------------------------------------------|--------------------------------------------|
| `greedy.py`, `chain_of_thought.py`                                     | one draw                                   |
| `budget_forcing.py`                                                    | one draw, with more or less thinking       |
| `self_consistency.py`, `adaptive_consistency.py`                       | votes over the answers of several draws    |
| `confidence_filtering.py`                                              | a vote of the draws that were surest       |
| `universal_self_consistency.py`                                        | a vote that the model itself counts        |
| `best_of_n.py`                                                         | a verifier or a judge chooses              |
| `beam_search.py`, `prm_beam_search.py`, `value_guided_search.py`       | beams by likelihood, step scores or value  |
| `dvts.py`, `particle_filtering.py`                                     | trees apart, and particles, by step scores |
| `mcts.py`, `tree_of_thoughts.py`, `graph_of_thoughts.py`               | trees and graphs                           |
| `compute_optimal.py`                                                   | a strategy for each difficulty             |
| `self_refine.py`, `mixture_of_agents.py`                               | prompts that read earlier answers          |
| `episodic_memory.py`                                                   | attempts that remember earlier ones        |
| `react.py`                                                             | tools                                      |
"""
