"""The program ``clipocr``, also as ``python -m clipocr``."""

from .shared import interrupts, outputs


def main() -> None:
    """Run the command line; a signal ends it in one line, whenever it comes."""
    interrupts.install()
    outputs.install()
    from .cli import main as commands

    commands()


if __name__ == "__main__":
    main()
