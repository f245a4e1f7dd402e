"""`python -m kgdistil.train`: see `distributed.run`."""

from kgdistil.distributed.run import main
from kgdistil.errors import run_command

if __name__ == "__main__":
    run_command(main)
