"""The main flow: recipe, run folder, compress, retarget, front, show."""
