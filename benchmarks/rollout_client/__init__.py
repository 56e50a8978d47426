"""How many samples a second one rollout client on one core turns replies into."""
