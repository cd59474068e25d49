"""What changes: one follower of the store, the events made of it, and those who listen."""
