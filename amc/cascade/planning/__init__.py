"""From a finished run to the best cascade under the constraints."""
