"""pipeline report"""

from pipeline.params import Params
from pipeline.progress import ProgressReport
from stages.report.run import Sources, format_summary, write_report


def report(params: Params) -> None:
    paths = params.paths
    sources = Sources(paths.metrics, paths.models, paths.utterances, paths.teacher)
    with ProgressReport("report", "utterances") as progress:
        page = write_report(sources, paths.report, params.report, progress)
    print(format_summary(paths.report))
    print(f"The report: {page}")
