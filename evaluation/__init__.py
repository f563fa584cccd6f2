"""What only eval.py needs."""
