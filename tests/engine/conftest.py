from pathlib import Path

import pytest
from engines import NUM_TOKENS, Case, random_prompts, transformers_answers
from tiny_models import make_llama


@pytest.fixture(scope="session", params=["llama2", "llama3"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Prompts of many lengths; some share beginnings, two are equal."""
    checkpoint = make_llama(tmp_path_factory.mktemp(request.param) / "model", request.param)
    prompts = random_prompts(1, 3, 8, 16, 17, 40, 75, 90)
    beginning = prompts[-1][:40]
    prompts += [[*beginning, 1, 2, 3], [*beginning, 4], beginning, prompts[3]]
    return Case(checkpoint, prompts, transformers_answers(checkpoint, prompts, NUM_TOKENS))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama") / "model", "llama3")
