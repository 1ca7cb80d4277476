"""What answers the engine: transformers or vLLM in this process, any OpenAI-compatible server."""
