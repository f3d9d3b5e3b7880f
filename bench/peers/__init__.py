"""Covey beside LiteLLM's proxy, and both beside the bare upstream: the same load, in turns (`make bench-peers`)."""
