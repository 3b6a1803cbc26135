"""Run records, scaling tables, plots and reports."""
