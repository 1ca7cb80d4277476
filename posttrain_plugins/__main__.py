"""`python -m posttrain_plugins` is `posttrain`."""

from posttrain_plugins.cli import main

main()
