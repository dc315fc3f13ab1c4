"""The commands of `dualtoken …`, one thin file each; cli.py finds and runs them."""
