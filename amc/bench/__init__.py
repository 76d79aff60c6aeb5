"""`amc bench`: our own claims, measured side by side in one run that anyone can repeat."""
