"""What a run over a data set showed: tables with their statistics, figures, a page; and two runs compared."""

from tubelens.evaluate.report.compare import Comparison, compare_runs
from tubelens.evaluate.report.write import Report, write_report

__all__ = ["Comparison", "Report", "compare_runs", "write_report"]
