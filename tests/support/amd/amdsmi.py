"""As much of AMD's `amdsmi` as Ray 2.60 asks for, on a node with eight MI355X. Put this folder on PYTHONPATH."""


class AmdSmiInitFlags:
    INIT_AMD_GPUS = 2


class AmdSmiMemoryType:
    VRAM = 0


class AmdSmiLibraryException(Exception):  # noqa: N818
    pass


def amdsmi_init(flags: int) -> None:
    del flags


def amdsmi_shut_down() -> None: ...


def amdsmi_get_processor_handles() -> list[int]:
    return list(range(8))


def amdsmi_get_gpu_id(handle: int) -> int:
    del handle
    return 0x75A3
