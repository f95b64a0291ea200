"""The page docs/evaluation.md and its figures."""
