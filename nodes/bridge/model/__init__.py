"""From conditionings to one call of the model, and back."""
