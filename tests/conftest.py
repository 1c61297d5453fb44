"""Test-wide surroundings: one thread per process (two cores are shared), and a home that is not the user's."""

import os
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["NFOLD_HOME"] = tempfile.mkdtemp(prefix="nfold-test-home-")
