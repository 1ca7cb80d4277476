"""Models in this process: chat, decoding loop, cache, stop strings."""
