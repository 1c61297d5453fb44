"""A served model that has a tokenizer and no weights."""

import pytest
from nfold.deployments.served_model import ServedModel
from nfold.models.tokenizer import Tokenizer
from tiny_models import save_tokenizer

CONTEXT = 64


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """`tiny`, with a context of 64 tokens and token ids below 300."""
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    return ServedModel("tiny", Tokenizer.load(directory), CONTEXT, 300)
