"""Report of a run on one page: how it went, how good the detector is, and what it gets wrong."""

from deformable_detr.report.write import try_to_report, write_report

__all__ = ["try_to_report", "write_report"]
