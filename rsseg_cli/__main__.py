"""`python -m rsseg_cli` is `rsseg`."""

from rsseg_cli.cli import main

if __name__ == "__main__":
    main()
