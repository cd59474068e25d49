"""`python -m packhorse` is the command `packhorse`."""

from __future__ import annotations

from .cli.main import main

if __name__ == "__main__":
    main()
