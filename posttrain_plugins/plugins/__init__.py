"""What a plugin is: where it is found, which parameters it takes, what it declares."""
