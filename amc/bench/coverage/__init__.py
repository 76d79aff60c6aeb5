"""How much of whole zoos can be cut: `amc doctor --zoo`."""
