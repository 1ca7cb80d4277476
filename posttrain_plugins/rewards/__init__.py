"""Reward plugins, one file each."""
