"""What all test folders share: the servers."""

from .servers import (  # noqa: F401  # pytest finds fixtures by their name in here
    database_of_this_run,
    postgres_database,
    postgres_server,
    postgres_url,
    prefix_of_this_run,
    private,
    redis_server,
    redis_url,
)
