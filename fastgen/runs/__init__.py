"""A run: its folder, its checkpoints, and the trained model in it."""
