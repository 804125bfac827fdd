"""From what a user gives (words, control pictures) to what a network is told."""
