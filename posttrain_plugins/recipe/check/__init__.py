"""A document -> a checked recipe, or all its mistakes at once."""
