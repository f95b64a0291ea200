"""What the bridge must know of each family of models, and nothing else may."""
