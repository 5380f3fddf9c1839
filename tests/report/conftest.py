import pytest


@pytest.fixture(autouse=True)
def figures():
    """Draw figures as a user gets them."""
