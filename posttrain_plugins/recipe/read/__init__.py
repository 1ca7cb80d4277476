"""A YAML file and its parents -> a document of plain values, each with its place."""
