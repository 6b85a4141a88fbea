"""What a feature is, how it is computed and how it lies on disk."""
