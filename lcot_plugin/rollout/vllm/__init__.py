"""Rollouts by vLLM servers, which run in an environment of their own."""
