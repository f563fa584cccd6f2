"""Turns numbers into pictures, terminal tables and pages."""
