"""How the book is built: `python -m book.build`. Not installed with the package."""
