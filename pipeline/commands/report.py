"""pipeline report"""

from pipeline.params import Params
from stages.report.run import format_summary, write_report


def report(params: Params) -> None:
    page = write_report(params.paths.metrics, params.paths.models, params.paths.report)
    print(format_summary(params.paths.report))
    print(f"The report: {page}")
