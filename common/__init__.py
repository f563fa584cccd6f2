"""What every room may use: files, errors, text, several processes."""
