"""Webhooks: signed posts of outcomes, to addresses that are public."""
