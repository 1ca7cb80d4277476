"""PPO, and GRPO with process rewards, on TRL's GRPOTrainer."""
