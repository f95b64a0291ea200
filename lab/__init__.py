"""How the demo's weights are made, and what encoders are worth: README.md says what is where."""
