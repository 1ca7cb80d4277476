"""YAML -> checked, frozen dataclasses -> plan -> run -> artifact store."""
