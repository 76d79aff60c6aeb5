"""`amc bench RECIPE`: all methods of search on one task, through the same measurement, recovery and fine-tune."""
