"""``onerec reward|rl|rollout-service``: the reward model, RL and the generation service."""

import typer


def register(app: typer.Typer) -> None:
    """Add these commands."""
