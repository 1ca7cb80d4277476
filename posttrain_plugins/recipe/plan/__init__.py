"""A recipe -> which stages must run: keys, the store of artifacts, the plan."""
