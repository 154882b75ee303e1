"""The reward model, P-Score (V1 §2.4): one number for how much a user would like what a code stands for."""
