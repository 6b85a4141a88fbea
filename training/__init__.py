"""Models and the training loop."""
