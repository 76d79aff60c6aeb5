"""Dynamic inference: stages of known cost, tried in order, stopping as soon as the answer is good enough."""
