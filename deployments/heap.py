"""The garbage collector and threads that serve: what a process has loaded is not walked again and again."""

import gc


def settle_heap() -> None:
    """Call once all is loaded: what lives now stays. Collecting Ray, torch and the model's objects would stop the
    thread that serves for tens of milliseconds each time, and free nothing."""
    gc.collect()
    gc.freeze()
