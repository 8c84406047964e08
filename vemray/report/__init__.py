"""The HTML report of a run and its pictures."""

from vemray.report.page import write_report  # noqa: F401
