"""What can be promised of a cascade from held-out examples, and when that no longer holds."""
