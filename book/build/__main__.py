"""`python -m book.build`: build the book, or show it."""

from kgdistil.errors import run_command

from .site import main

run_command(main)
