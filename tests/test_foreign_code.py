"""A model that brings Python code of its own is refused with the cure; nobody is asked on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.load import load_model, load_tokenizer, options_of, task_to_load


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (tmp_path / "theirs.py").write_text("raise RuntimeError('it was run')\n")
    return tmp_path


@pytest.mark.parametrize("load", [load_model, load_tokenizer, task_to_load])
def test_foreign_code_is_refused(foreign: Path, monkeypatch: pytest.MonkeyPatch, load: object) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(InputError, match="brings Python code of its own") as caught:
        load(str(foreign))  # type: ignore[operator]
    assert "trust_remote_code: true" in str(caught.value.hint)


def test_who_trusts_it_says_so(foreign: Path) -> None:
    assert options_of({"trust_remote_code": True})["trust_remote_code"] is True
    with pytest.raises(RuntimeError, match="it was run"):
        load_model(foreign, {"trust_remote_code": True})
