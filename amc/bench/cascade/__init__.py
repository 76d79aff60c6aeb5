"""`amc bench cascade`: what dynamic inference must show, measured."""
