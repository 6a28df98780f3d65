"""Reports: runs read back, tables, figures, the page."""
