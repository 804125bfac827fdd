"""Public weight formats, one file each, read and written from the same rows."""
