"""`python -m app.cli` is `errata`, also where no console script is installed."""

from app.cli import main

main()
