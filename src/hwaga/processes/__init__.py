"""Noising: alpha and sigma at a time, and what follows from them. A process knows no network."""
