"""The command of the simulator."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
