"""Distributed batch scoring of a shop's catalogue on Spark. Start at README.md, then schemas.py."""

__version__ = "0.1.0"
