"""From names to networks, data and functions: adapters at the door."""
