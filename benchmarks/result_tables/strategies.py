"""Tables of test-time strategies: accuracy against tokens."""

from __future__ import annotations

from result_tables import text
from result_tables.text import Json

__all__ = ["search_table", "test_time_table"]


def test_time_table(results: Json) -> str:
    """One row per way of answering, the most accurate first."""
    rows = []
    ordered = sorted(results["strategies"].items(), key=lambda item: -item[1]["mean"])
    for name, found in ordered:
        is_oracle = name.endswith("(oracle)")
        rows.append(
            [
                f"`{name}`",
                f"{found['mean']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})",
                f"{found['tokens']:.0f}",
                "" if is_oracle else f"{found['best_of_n_at_its_tokens']:.2f}",
                "oracle" if is_oracle else f"{found['beats_best_of_n']} of {found['seeds']}",
                "yes" if found["pareto"] == found["seeds"] else "",
            ]
        )
    head = ["strategy", "accuracy", "tokens a problem", "best of n (PRM) at as many", "beats it on seeds", "Pareto"]
    problems = next(iter(results["seeds"].values()))["problems"]
    wide = max(way["high"] - way["low"] for seed in results["seeds"].values() for way in seed["ways"].values())
    note = (
        f"{problems} held-out problems; means over {text.which_seeds(results['seeds'])}, in brackets the lowest and "
        f"highest seed. 95 % intervals of a seed, over problems, are at most {wide:.2f} wide. Tokens: read and "
        "written, by reward models too."
    )
    return f"{text.table(head, rows)}\n\n{note}"


def search_table(results: Json) -> str:
    """One row per way of answering, the most accurate first: tokens, gain over greedy, best of n at as many tokens."""
    names = list(next(iter(results["strategies"].values()))["best_at_its_tokens"])
    rows = []
    for name, way in sorted(results["strategies"].items(), key=lambda item: -item[1]["mean"]):
        is_oracle = name.endswith("(oracle)")
        gain = way.get("over_greedy")
        told, by_seed = (text.signed(gain), text.each_seed(gain)) if gain else ("", "")
        best = ["" if is_oracle else f"{way['best_at_its_tokens'][by]:.2f}" for by in names]
        rows.append([f"`{name}`", f"{way['mean']:.2f}", f"{way['tokens']:.0f}", told, by_seed, *best])
    best_of = [f"best of n (`{by}`) at as many" for by in names]
    head = ["strategy", "accuracy", "tokens a problem", "over greedy [95 %]", "by seed", *best_of]
    problems = next(iter(results["seeds"].values()))["problems"]
    note = (
        f"{problems} held-out problems, {text.which_seeds(results['seeds'])}; the interval is of a bootstrap over "
        "problems and seeds. Tokens: read and written, by reward models too. Best of n: the best for at most as many "
        "tokens, up to the samples that there are."
    )
    return f"{text.table(head, rows)}\n\n{note}"
