"""Helper processes that answer line by line."""

import pytest
from autoscaling_drive import ClientProcess
from helper_process import HelperProcess


def test_clients_without_streams_answer() -> None:
    with ClientProcess("http://127.0.0.1:1/v1", 10) as clients:
        assert clients.want({}) == clients.counts()
        assert clients.end()["num_done"] == 0


def test_one_that_ended_is_told() -> None:
    with (
        HelperProcess("autoscaling_clients.py") as helper,
        pytest.raises(SystemExit, match=r"clients\.py ended with"),
    ):
        helper.ask({})
