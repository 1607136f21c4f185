"""Fixtures of the tests of graphs."""

from schedules import limits

__all__ = ["limits"]
