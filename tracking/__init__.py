"""Runs, registered models, and the decision to promote one."""
