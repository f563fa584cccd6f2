"""What every room may use: errors, files, strings, and running in several processes."""
