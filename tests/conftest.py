"""Test-wide surroundings: one thread per process (two cores are shared), and a home that is not the user's."""

import os
import secrets
import tempfile

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Read when triton is imported; what needs its compiler runs it in a process of its own.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["NFOLD_HOME"] = tempfile.mkdtemp(prefix="nfold-test-home-")
# Ray reads its token once per process, so all clusters of a test run share one.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
# Read when Ray is imported: without it clients replace 127.0.0.1 by an address of the network.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# The same examples in every run; `--hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
