"""What the shipped encoder is compared with, and how that is trained."""
