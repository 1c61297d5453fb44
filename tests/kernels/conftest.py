from collections.abc import Generator

import pytest
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Generator[Implementation]:
    with kernels(request.param):
        yield request.param
