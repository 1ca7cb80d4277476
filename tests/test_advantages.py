"""The formulas of PPO and its kin, each against a plain loop written from its definition, and worked by hand."""

from __future__ import annotations

import doctest
import math

import pytest

torch = pytest.importorskip("torch")

from posttrain_plugins.trainers.ppo import advantages  # noqa: E402

Rows = list[list[float]]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four rows of seven tokens: whole, cut short, of one token, and with a tool's answer in the middle."""
    torch.manual_seed(0)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6, [1, 1, 0, 0, 1, 1, 0]]).float()
    return {
        "mask": mask,
        "values": torch.randn(4, 7),
        "rewards": torch.randn(4, 7) * mask,
        "logps": -torch.rand(4, 7),
        "ref": -torch.rand(4, 7),
    }


# --- definitions, as loops -------------------------------------------------------------------------------------------


def written(mask: torch.Tensor, row: int) -> list[int]:
    return [t for t in range(mask.size(1)) if mask[row, t]]


def gae_by_definition(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> Rows:
    """sum over l of (gamma lam)^l delta_{t+l}, over the tokens that the model wrote."""
    found = [[0.0] * mask.size(1) for _ in range(mask.size(0))]
    for b in range(mask.size(0)):
        tokens = written(mask, b)
        r = [float(rewards[b, t]) for t in tokens]
        v = [float(values[b, t]) for t in tokens] + [0.0]
        deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(tokens))]
        for i, t in enumerate(tokens):
            found[b][t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(tokens)))
    return found


def whitened_by_definition(rows: Rows, mask: torch.Tensor, shift_mean: bool = True) -> Rows:
    known = [rows[b][t] for b in range(mask.size(0)) for t in written(mask, b)]
    mean = sum(known) / len(known)
    spread = math.sqrt(sum((x - mean) ** 2 for x in known) / (len(known) - 1) + 1e-8)
    kept = 0.0 if shift_mean else mean
    return [
        [(rows[b][t] - mean) / spread + kept if mask[b, t] else 0.0 for t in range(mask.size(1))]
        for b in range(mask.size(0))
    ]


def assert_close(found: torch.Tensor, expected: Rows, tolerance: float = 1e-6) -> None:
    assert float((found - torch.tensor(expected)).abs().max()) <= tolerance


# --- against them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 0.95)])
def test_gae_and_whitening(batch: dict[str, torch.Tensor], gamma: float, lam: float) -> None:
    mask, values, rewards = batch["mask"], batch["values"], batch["rewards"]
    found, returns = advantages.gae(rewards, values, mask, gamma, lam)
    expected = gae_by_definition(rewards, values, mask, gamma, lam)
    assert_close(found, expected)
    assert_close(returns, ((torch.tensor(expected) + values) * mask).tolist())
    assert_close(advantages.whiten(found, mask), whitened_by_definition(expected, mask))
    assert_close(
        advantages.whiten(rewards, mask, shift_mean=False), whitened_by_definition(rewards.tolist(), mask, False)
    )


def test_what_the_model_did_not_write_changes_nothing(batch: dict[str, torch.Tensor]) -> None:
    """A tool's answer in the middle is stepped over: the row is worth what it is worth without it."""
    row = slice(3, 4)
    whole = advantages.gae(batch["rewards"][row], batch["values"][row], batch["mask"][row], 0.9, 0.8)[0]
    keep = [0, 1, 4, 5]
    without = advantages.gae(batch["rewards"][row][:, keep], batch["values"][row][:, keep], torch.ones(1, 4), 0.9, 0.8)[
        0
    ]
    assert torch.equal(whole[:, keep], without)
    assert not whole[:, [2, 3, 6]].any()


def test_the_score_is_on_the_last_token_and_the_kl_on_each(batch: dict[str, torch.Tensor]) -> None:
    kl = advantages.kl_estimate(batch["logps"], batch["ref"])
    found = advantages.token_rewards(batch["mask"], torch.tensor([1.0, 2.0, 3.0, 4.0]), kl, kl_coef=0.1)
    for b, (last, score) in enumerate([(6, 1.0), (3, 2.0), (0, 3.0), (5, 4.0)]):
        for t in range(7):
            penalty = 0.1 * float(batch["logps"][b, t] - batch["ref"][b, t])
            expected = (score * (t == last) - penalty) if batch["mask"][b, t] else 0.0
            assert float(found[b, t]) == pytest.approx(expected, abs=1e-6)


def test_a_row_without_tokens_earns_nothing() -> None:
    assert not advantages.token_rewards(torch.zeros(1, 3), torch.ones(1)).any()


def test_steps_pay_at_their_ends() -> None:
    """Worked by hand: two steps, worth 1 and -1, and a score of 5; gamma 1."""
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    steps = torch.tensor([[0.0, 1.0, -1.0, 0.0]])
    rewards = advantages.token_rewards(mask, torch.tensor([5.0]), steps=steps)
    assert rewards.tolist() == [[0.0, 1.0, -1.0, 5.0]]
    assert advantages.returns_to_go(rewards, mask).tolist() == [[5.0, 5.0, 4.0, 5.0]]


@pytest.mark.parametrize(
    ("kind", "expected"), [("k1", [0.5, -0.25]), ("k3", [math.exp(-0.5) - 0.5, math.exp(0.25) - 1.25])]
)
def test_kl_estimates(kind: str, expected: list[float]) -> None:
    found = advantages.kl_estimate(torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -0.75]), kind)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_k1_and_k3_are_the_same_in_the_mean() -> None:
    """Samples of p: both estimate KL(p, q), k3 with less variance and never below 0."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    exact = float((p * (p / q).log()).sum())
    draws = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    k1, k3 = (advantages.kl_estimate(p.log()[draws], q.log()[draws], kind) for kind in ("k1", "k3"))
    assert float(k1.mean()) == pytest.approx(exact, abs=5e-3)
    assert float(k3.mean()) == pytest.approx(exact, abs=5e-3)
    assert float(k3.std()) < float(k1.std())
    assert float(k3.min()) >= 0 > float(k1.min())


def test_returns_to_go_are_discounted() -> None:
    found = advantages.returns_to_go(torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3), gamma=0.5)
    assert found.tolist() == [[1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4]]


def test_group_means_pass_over_who_cannot_judge() -> None:
    scores = torch.tensor([1.0, 3.0, 5.0, float("nan")])
    assert advantages.group_mean(scores, 2).tolist() == [2.0, 2.0, 5.0, 5.0]


def test_grpos_outcome_advantage_is_trls() -> None:
    """By hand: group means 1 and 3, deviations sqrt(2) and 2 sqrt(2); whoever cannot be judged has 0."""
    scores = torch.tensor([0.0, 2.0, 1.0, 5.0, 7.0, float("nan")])
    one, two, batch = math.sqrt(2) + 1e-4, 2 * math.sqrt(2) + 1e-4, math.sqrt(8.5) + 1e-4
    assert advantages.group_normalized(scores, 2).tolist() == pytest.approx(
        [-1 / one, 1 / one, -2 / two, 2 / two, 0.0, 0.0], abs=1e-5
    )
    assert advantages.group_normalized(scores, 2, "none").tolist() == [-1.0, 1.0, -2.0, 2.0, 0.0, 0.0]
    assert advantages.group_normalized(scores, 2, "batch").tolist() == pytest.approx(
        [-1 / batch, 1 / batch, -2 / batch, 2 / batch, 0.0, 0.0], abs=1e-5
    )


def test_process_supervision_by_hand() -> None:
    """DeepSeekMath 4.1.3: R of the group is [1, 0, 1, 1], mean .75, deviation .5; a token sums what ends behind it."""
    normal = advantages.normalized_steps([[1.0, 0.0], [1.0, 1.0], [], [2.0]], 2)
    up, down = 0.25 / 0.5001, -0.75 / 0.5001
    assert normal[0] == pytest.approx([up, down])
    assert normal[1] == pytest.approx([up, up])
    assert normal[2:] == [[], [0.0]]
    at_ends = torch.tensor([[0.0, normal[0][0], 0.0, normal[0][1]]])
    found = advantages.returns_to_go(at_ends, torch.ones(1, 4))
    assert found[0].tolist() == pytest.approx([up + down, up + down, down, down])
    assert advantages.normalized_steps([[3.0], [1.0]], 2, scale=False) == [[1.0], [-1.0]]


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (0.0, 0.98)])
def test_the_adaptive_coefficient_moves_by_a_fifth_at_most(kl: float, factor: float) -> None:
    found = advantages.next_kl_coef(0.5, kl, target=6.0, horizon=1000, completions=100)
    assert found == pytest.approx(0.5 * factor)


def test_the_value_loss_by_definition(batch: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(1)
    values, old, returns, mask = torch.randn(4, 7), batch["values"], torch.randn(4, 7), batch["mask"]
    loss, clipped = advantages.clipped_value_loss(values, old, returns, mask, cliprange=0.2)
    errors, cut = [], []
    for b in range(4):
        for t in written(mask, b):
            v, o, r = (float(x[b, t]) for x in (values, old, returns))
            near = min(max(v, o - 0.2), o + 0.2)
            errors.append(max((v - r) ** 2, (near - r) ** 2))
            cut.append((near - r) ** 2 > (v - r) ** 2)
    assert float(loss) == pytest.approx(0.5 * sum(errors) / len(errors), abs=1e-6)
    assert float(clipped) == pytest.approx(sum(cut) / len(cut))


def test_a_clipped_value_has_no_gradient() -> None:
    value = torch.tensor([[2.0]], requires_grad=True)
    one = torch.ones(1, 1)
    advantages.clipped_value_loss(value, 0 * one, 5 * one, one, cliprange=0.5)[0].backward()
    assert value.grad is not None
    assert float(value.grad) == 0.0


def test_whitening_is_over_all_processes(batch: dict[str, torch.Tensor]) -> None:
    """Two processes with half of the batch each, in step: the sums of both are what each divides by."""
    x, mask = batch["rewards"], batch["mask"]
    whole = advantages.whiten(x, mask)
    moments = []

    def note(t: torch.Tensor) -> torch.Tensor:
        moments.append(t.clone())
        return t

    advantages.whiten(x, mask, note)
    replayed = iter(moments)

    def total(t: torch.Tensor) -> torch.Tensor:
        return next(replayed)

    assert torch.equal(advantages.whiten(x[:2], mask[:2], total), whole[:2])


def test_explained_variance(batch: dict[str, torch.Tensor]) -> None:
    returns, mask = batch["rewards"], batch["mask"]
    assert advantages.explained_variance(returns, returns, mask) == 1.0
    assert advantages.explained_variance(torch.ones_like(returns), returns, mask) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(advantages.explained_variance(returns, torch.ones_like(returns), mask))


def test_the_examples() -> None:
    failed, tried = doctest.testmod(advantages)
    assert (failed, tried > 8) == (0, True)
