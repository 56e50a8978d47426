"""The policies on a simulated rollout, in virtual time: `python -m benchmarks.balancing`."""
