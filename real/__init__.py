"""The real implementation: measures what the simulator predicts."""
