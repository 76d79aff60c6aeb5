"""ESN: a saver, a base network and exits between them."""
