"""When an example stops: scores of answers, thresholds, and the search for them."""
