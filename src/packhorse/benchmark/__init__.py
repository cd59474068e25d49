"""`packhorse bench`: what this machine and this backend can do, next to the floor measured in the same run."""
