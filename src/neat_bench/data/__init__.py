"""Data sets: where their files come from, one file a suite."""
