"""Which distributions are installed, found without setuptools."""

from importlib.metadata import distributions


def is_installed(distribution: str) -> bool:
    """Tell whether a distribution is installed, by its name at the package index."""
    return any(True for _ in distributions(name=distribution))
