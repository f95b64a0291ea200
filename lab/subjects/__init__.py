"""Subjects that were held out of all training, and the prompts they are drawn by."""
