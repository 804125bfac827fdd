"""A model's tensors at run time: mapped from files by name, checked against what a network needs, and put into it."""
