"""Haiku for posttrain-plugins: one plugin of each kind."""
