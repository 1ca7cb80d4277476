"""Adapter plugins: what is trainable. Reached by name only."""
