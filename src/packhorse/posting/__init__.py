"""Signed posts to the addresses that were checked: for the server's webhooks and for `post_failures`."""
