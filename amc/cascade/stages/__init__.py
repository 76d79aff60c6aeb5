"""Stages, what they say of held-out examples, and how those are split."""
