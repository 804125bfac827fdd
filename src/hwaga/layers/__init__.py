"""What networks are made of, each exactly once."""
