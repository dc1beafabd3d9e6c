"""Training on the planted actions."""
