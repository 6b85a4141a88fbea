"""Published experiments: what they are, the way through one, and the table beside the figures."""
