"""What a report that is sent by e-mail must not hold: secrets, and where somebody's home is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.report.masking import masked, masked_text

SECRET = "s3cr3tvalue99"


@pytest.mark.parametrize(
    "name",
    ["hub_token", "token", "api_key", "apiKey", "OPENAI_API_KEY", "secret", "client-secret", "password", "credentials"],
)
def test_what_is_called_a_secret_is_one_at_any_depth(name: str) -> None:
    found = masked({"stages": [{"args": {name: SECRET, "beta": 0.1}}]})
    assert found == {"stages": [{"args": {name: "***", "beta": 0.1}}]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 48),
        ("max_tokens", "48"),
        ("tokenizer", "posttrain_plugins.tiny_world.tokenizer:base_tokenizer"),
        ("eos_token", "<eos>"),
        ("pad_token", "<pad>"),
        ("key format", "2"),
        ("keyword", "thanks"),
        ("monkey", "x"),
        ("num_tokens", None),
    ],
)
def test_what_is_none_stands(name: str, value: Any) -> None:
    assert masked({name: value}) == {name: value}


@pytest.mark.parametrize(
    "line",
    [
        f"posttrain run r.yaml --api-key {SECRET}",
        f"posttrain run r.yaml -o stages.grpo.args.hub_token={SECRET}",
        f'{{"secret": "{SECRET}"}}',
        "401 for hf_abcdefghijklmnopqrstuvwx",
        "sk-abcdefghij0123456789 was refused",
        "https://me:hunter2@example.org/x",
        "Authorization: Bearer abc.def-ghi012",
    ],
)
def test_secrets_are_found_within_a_line(line: str) -> None:
    found = masked_text(line)
    assert "***" in found
    for word in (SECRET, "hf_abc", "sk-abc", "hunter2", "abc.def"):
        assert word not in found


@pytest.mark.parametrize("line", ["the key thing is beta", "48 tokens per problem", "a token of thanks", "seed: 0"])
def test_words_are_no_secrets(line: str) -> None:
    assert masked_text(line) == line


def test_the_home_folder_is_a_tilde_and_its_neighbours_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert masked_text("/home/me/runs/x and /home/mean and /x/home/me/y") == "~/runs/x and /home/mean and /x/home/me/y"
    assert masked({"model": "/home/me/m", "/home/me/x": 1}) == {"model": "~/m", "~/x": 1}
