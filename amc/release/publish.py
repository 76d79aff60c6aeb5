"""The pages of a release: the report for its makers, the model card for its users."""

from __future__ import annotations

from pathlib import Path

from amc.release import CARD, REPORT
from amc.release.report_inputs import ReportInputs
from amc.system.files import write_text


def publish(folder: Path, inputs: ReportInputs) -> None:
    """Write `report.html` and `README.md` into a run folder that holds the release already.

    Raises:
        StorageError: the folder cannot be written.
    """
    from amc.release.card import model_card  # plotly and jinja2, which nothing else of a run needs
    from amc.release.report import report

    write_text(folder / REPORT, report(inputs))
    write_text(folder / CARD, model_card(folder, inputs))
