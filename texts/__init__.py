"""Readers of texts, tables and hub datasets, and the token files made of them."""
