"""Dataset plugins, one file each."""
