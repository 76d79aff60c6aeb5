"""B-DISTIL: an ensemble of small students, each prefix of which answers."""
