"""What is asked of a cluster before anything is spent on it. Read `validate.py` first."""
