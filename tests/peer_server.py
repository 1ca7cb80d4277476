"""Servers of other projects, started for a test and ended with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

PATIENCE_S = 300


@contextlib.contextmanager
def running(command: Sequence[str], health: str, log: Path, **environment: str) -> Iterator[None]:
    """Run a server until the block is left, which is entered when `health`, a URL, answers."""
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environment})
        try:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(health, timeout=5):
                    break
                time.sleep(0.2)
            yield
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def tiny_llama(folder: Path) -> Path:
    """Save a random model with the tiny world's tokenizer and return its folder.

    A Llama, because for a Qwen3 `transformers serve` reads answers with Qwen's own chat format, whatever the template;
    vLLM on a CPU takes no smaller heads.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=256, **sizes, **ids))
    model.save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    return folder
