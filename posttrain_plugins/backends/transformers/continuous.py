"""transformers' continuous batching, with its paged cache, CUDA graphs and flash attention, behind our rows.

Its noise is one stream for the whole batch, so a completion depends on what else is drawn: with equal seeds, another
batch gives other completions. No paper.

1. It applies one temperature, top_p and top_k to all it draws together, so rows that differ in them come one after
   another.
2. It knows no stop strings, no greedy row among sampled ones, and no log-probabilities before temperature: rows that
   want these are for `decode.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from posttrain_plugins.backends.transformers.decode import Drawn, Row
from posttrain_plugins.errors import StageFailed

__all__ = ["ContinuousBatching"]

MEMORY_SHARE = 0.5  # of the GPU's free memory; the rest is for the rows that decode.py draws
PAGE_TOKENS = 256  # transformers' own page
CPU_PAGES = 64  # and for the tokens of a step: masks over all of both are laid out before
CPU_STEP_TOKENS = 1024
TIMEOUT_S = 1.0


class ContinuousBatching:
    """Draws rows with `generate`'s own scheduler; what it has set up stays for rows with the same parameters.

    Args:
        model: a transformers model, a `PeftModel` too.
        eos_ids: tokens that end a completion.
    """

    def __init__(self, model: Any, eos_ids: Sequence[int]) -> None:
        self._model = model
        self._eos_ids = list(eos_ids)
        self._ready_for: tuple[float, float, int, int | None] | None = None

    def takes(self, row: Row) -> bool:
        """Return whether it can draw this row."""
        params = row.params
        asks = params.stop or params.logprobs or params.top_logprobs or params.values
        return params.temperature > 0 and not asks

    def draw(self, rows: Sequence[Row]) -> Iterator[Drawn]:
        """Draw rows that it takes, each as soon as it is finished."""
        of: dict[tuple[float, float, int], list[Row]] = {}
        for row in rows:
            of.setdefault((row.params.temperature, row.params.top_p, row.params.top_k), []).append(row)
        for sampling, alike in of.items():
            need = (*sampling, self._pages(alike))
            if need != self._ready_for:  # captured graphs and pages fit one set of parameters
                self.close()
                self._ready_for = need
            yield from self._draw_alike(alike)

    def close(self) -> None:
        """Free what stays between calls."""
        if self._ready_for is not None:
            self._model.destroy_cached_continuous_batching_manager()
            self._ready_for = None

    def _pages(self, rows: Sequence[Row]) -> int | None:
        """Return pages of the cache, a power of two so that like waves share it; None leaves it to the GPU's memory."""
        if self._model.device.type == "cuda":
            return None
        each = [-(-(len(row.prompt) + row.max_tokens) // PAGE_TOKENS) for row in rows]
        return max(max(each), min(1 << sum(each).bit_length(), CPU_PAGES))

    def _draw_alike(self, rows: Sequence[Row]) -> Iterator[Drawn]:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        pages, params = self._pages(rows), rows[0].params
        sampling = GenerationConfig(
            do_sample=True,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,  # 0 for all; 50 by default
            eos_token_id=self._eos_ids,
            pad_token_id=self._eos_ids[0],
            max_new_tokens=max(row.max_tokens for row in rows),
        )
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=pages,
            max_batch_tokens=None if pages is None else CPU_STEP_TOKENS,
            max_memory_percent=MEMORY_SHARE,
            seed=rows[0].seed % 2**31,
        )
        with self._model.continuous_batching_context_manager(
            generation_config=sampling, continuous_batching_config=batching, persistent_manager=True
        ) as manager:
            waiting = {manager.add_request(list(row.prompt), max_new_tokens=row.max_tokens): row for row in rows}
            try:
                while waiting:
                    result = manager.get_result(timeout=TIMEOUT_S)
                    if result is None and not manager.is_running():  # it works in a thread, which may have died
                        raise StageFailed("transformers' continuous batching ended before its completions were drawn")
                    # with a persistent manager, what an earlier caller gave up may still come
                    if result is None or not result.is_finished() or result.request_id not in waiting:
                        continue
                    row = waiting.pop(result.request_id)
                    if result.error is not None:
                        raise StageFailed(f"transformers' continuous batching failed: {result.error}")
                    ids = [int(token) for token in result.generated_tokens]
                    yield Drawn(row, ids, is_stopped=len(ids) < row.max_tokens or ids[-1] in self._eos_ids)
            finally:
                for name in waiting:  # the caller has had enough
                    manager.cancel_request(name)
