"""Sweeps: what their folders are called, which jobs are done, and what they found."""
