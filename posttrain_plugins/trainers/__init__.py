"""How a TRL trainer is started, watched and ended, and the one place that touches TRL's private names (`compat`)."""
