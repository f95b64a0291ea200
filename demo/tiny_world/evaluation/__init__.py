"""What encoders are worth, measured in the tiny world, where every prompt has one right answer."""
