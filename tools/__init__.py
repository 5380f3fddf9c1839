"""Scripts for developers that are not installed with the package."""
