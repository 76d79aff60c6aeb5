"""Trace a network once; cut any policy out of its tensors; recover what was cut."""
