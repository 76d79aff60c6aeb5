"""How stages are made: savers, exits, exit sequences, small students."""
