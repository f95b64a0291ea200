"""From the words of a prompt to what travels with its conditioning."""
