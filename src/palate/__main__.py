"""`python -m palate`, which is what `accelerate launch -m palate` runs."""

from palate.cli import main

if __name__ == "__main__":
    main()
