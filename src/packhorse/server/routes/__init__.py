"""The operations by subject, each file a table: read, call a verb, answer."""
