"""The KIND my_plugin."""
