"""Seeing what packhorse does."""
