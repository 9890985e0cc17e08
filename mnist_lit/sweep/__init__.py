"""Sweeps: what their folders are called, which jobs are done, and which are left."""
