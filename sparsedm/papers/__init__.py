"""What each paper declares: scales, methods, tables, reported numbers, claims."""
