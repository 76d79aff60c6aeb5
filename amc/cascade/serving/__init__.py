"""Running, timing, saving, exporting and serving a cascade."""
