"""``python -m toolchain.report BUNDLE...``: one self-contained HTML page of what is known of one or more bundles."""

from __future__ import annotations

from toolchain.report.command import main, write_report

__all__ = ["main", "write_report"]
