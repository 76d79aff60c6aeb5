"""What the machine gives: files written whole, devices, processes, progress, errors."""
