"""Synthetic patients: a test bed whose truth is exact, never evidence about people."""
