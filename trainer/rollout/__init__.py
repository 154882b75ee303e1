"""The rollout service: generation in processes of its own (Ray actors), which outlives the trainer that feeds it weights."""
