"""``python -m upscore``: the same as the command ``upscore``."""

from upscore.cli.main import main

if __name__ == "__main__":
    main()
