"""Losses and regularizers: functions of networks that are handed in, giving named terms."""
