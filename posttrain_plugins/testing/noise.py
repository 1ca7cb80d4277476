"""The global generators of chance: does something move them?"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["assert_untouched"]

SEED = 20_240_229


def assert_untouched(call: Callable[[], Any]) -> None:
    """Calls with global generators in a state of our own, so that a seed set before is no excuse; then puts them back.

    Raises:
        AssertionError: one of them is not where it was.
    """
    with _in_own_state():
        before = _states()
        call()
        touched = [name for name, state in _states().items() if state != before.get(name, state)]
    assert not touched, f"it changed the global generator of {', '.join(touched)}"


@contextmanager
def _in_own_state() -> Iterator[None]:
    python = random.getstate()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
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
    """The state of each global generator, of libraries that are imported."""
    states: dict[str, Any] = {"random": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy"] = repr(sys.modules["numpy"].random.get_state())
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].random.get_rng_state().tolist()
    return states
