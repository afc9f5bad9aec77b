"""The report: one self-contained HTML page, and one picture, of what finished runs show."""
