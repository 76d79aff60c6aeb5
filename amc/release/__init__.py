"""What leaves a run: the network, its record, its report and its card."""

REPORT, CARD = "report.html", "README.md"
