"""Training: the recipe, and what it is made of."""
