"""From results to what people look at: tables, plots and pages."""

from jaxmerge.reports.overview import inspection, write_page, write_plots
from jaxmerge.reports.scores import evaluation
from jaxmerge.reports.tables import table

__all__ = ["evaluation", "inspection", "table", "write_page", "write_plots"]
