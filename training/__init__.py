"""The parts of train.py that are not on its page."""
