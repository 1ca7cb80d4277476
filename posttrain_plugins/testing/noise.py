"""The global generators of random, numpy and torch: does a call move them?"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["assert_untouched"]

SEED = 20_240_229


def assert_untouched(call: Callable[[], Any]) -> None:
    """Call, and compare the global generators before and after; then put them back.

    Raises:
        AssertionError: one of them is not where it was.
    """
    with _generators_seeded():
        before = _states()
        call()
        # a library that the call has just imported has no state before it, and is not blamed
        touched = [name for name, state in _states().items() if state != before.get(name, state)]
    assert not touched, f"it changed the global generator of {', '.join(touched)}"


@contextmanager
def _generators_seeded() -> Iterator[None]:
    """Give the generators a state that nobody else sets: a call that sets a seed of its own then shows."""
    python = random.getstate()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")  # not imported for this: torch takes seconds
    others = (numpy and numpy.random.get_state(), torch and torch.random.get_rng_state())
    random.seed(SEED)
    if numpy:
        numpy.random.seed(SEED)
    if torch:
        torch.random.manual_seed(SEED)
    try:
        yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(others[0])
        if torch:
            torch.random.set_rng_state(others[1])


def _states() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy"] = repr(sys.modules["numpy"].random.get_state())  # holds an array, which has no plain ==
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].random.get_rng_state().tolist()
    return states
