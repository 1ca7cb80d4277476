"""Strategy plugins, one file each."""
