"""PyTorch: shard reader, model, training, generation, evaluation, reward model, RL and the rollout service."""
