"""The doors in front of page and API: who may ask, what, how much and how long."""
