"""Flows: where features, training and tracking meet the cluster."""
