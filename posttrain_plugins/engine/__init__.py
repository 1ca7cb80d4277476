"""The engine that runs strategies over many problems at once."""
