"""Between the host's arrays and the device's tensors, so that neither waits for the other."""

import numpy as np
import torch
from numpy.typing import NDArray


def to_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """On CPU the same memory; elsewhere a copy through pinned memory, so that the host does not wait for it."""
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """A device's tensor on its way to the host, behind all that was asked of the device before and before all that
    will be; on CPU the tensor itself."""

    def __init__(self, source: torch.Tensor) -> None:
        if source.device.type == "cpu":
            self._tensor, self._done = source, None
            return
        self._tensor = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._tensor.copy_(source, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(source.device))

    def read(self) -> torch.Tensor:
        """Waits until it is there."""
        if self._done is not None:
            self._done.synchronize()
        return self._tensor
