"""Stage plugins, one file each; short, because they delegate to TRL. Reached by name only."""
