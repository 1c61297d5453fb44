from pathlib import Path
from typing import Literal

import pytest
from engines import NUM_TOKENS, Case, random_prompts, transformers_answers
from tiny_models import make_llama

Family = Literal["llama2", "llama3"]
FAMILIES: tuple[Family, ...] = ("llama2", "llama3")


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Case]:
    """Prompts of many lengths; some share beginnings, two are equal."""
    prompts = random_prompts(1, 3, 8, 16, 17, 40, 75, 90)
    beginning = prompts[-1][:40]
    prompts += [[*beginning, 1, 2, 3], [*beginning, 4], beginning, prompts[3]]
    cases: dict[Family, Case] = {}
    for family in FAMILIES:
        checkpoint = make_llama(tmp_path_factory.mktemp(family) / "model", family)
        cases[family] = Case(checkpoint, prompts, transformers_answers(checkpoint, prompts, NUM_TOKENS))
    return cases


@pytest.fixture(scope="session", params=FAMILIES)
def case(request: pytest.FixtureRequest, cases: dict[Family, Case]) -> Case:
    return cases[request.param]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama") / "model", "llama3")
