import pytest
from fake_server import Both


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def either(request: pytest.FixtureRequest) -> Both:
    """Either client."""
    return Both(is_async=request.param)
