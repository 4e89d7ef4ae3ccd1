"""`python -m jaxcond` is the command `jaxcond`."""

from .cli import console

if __name__ == "__main__":
    console()
