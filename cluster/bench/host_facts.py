"""What a machine is, read from files that every Linux has; what cannot be read is left out."""

import os
import platform
import socket
from pathlib import Path

from .record import HostFacts

_AMD, _NVIDIA = "0x1002", "0x10de"
_FIRMWARE = ("vbios_version",)


def host_facts(root: Path = Path("/")) -> HostFacts:
    """Of this machine.

    Args:
        root: where its files are found.
    """
    cards = [card for card in sorted((root / "sys/class/drm").glob("card[0-9]*")) if "-" not in card.name]
    accelerators: dict[str, int] = {}
    firmware: dict[str, str] = {}
    clocks: dict[str, int] = {}
    for card in cards:
        if _line(card / "device/vendor") not in (_AMD, _NVIDIA):
            continue
        model = _line(card / "device/product_name") or f"PCI device {_line(card / 'device/device') or 'unknown'}"
        accelerators[model] = accelerators.get(model, 0) + 1
        for name in _FIRMWARE:
            if (version := _line(card / "device" / name)) is not None:
                firmware[name] = version
        for name, file in (("core", "pp_dpm_sclk"), ("memory", "pp_dpm_mclk")):
            if (clock := _highest_mhz(card / "device" / file)) is not None:
                clocks[name] = clock
        for version_file in sorted((card / "device/fw_version").glob("*_fw_version")):
            if (version := _line(version_file)) is not None:
                firmware[version_file.name.removesuffix("_fw_version")] = version
    for gpu in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = _field(gpu, "Model") or "NVIDIA GPU"
        accelerators[model] = accelerators.get(model, 0) + 1
        if (version := _field(gpu, "Video BIOS")) is not None:
            firmware["video_bios"] = version
    return HostFacts(
        host=socket.gethostname(),
        cpu=_field(root / "proc/cpuinfo", "model name") or platform.machine(),
        num_cores=os.cpu_count() or 1,
        memory_bytes=int((_field(root / "proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024,
        kernel=platform.release(),
        system=(_shell_value(root / "etc/os-release", "PRETTY_NAME") or platform.system()),
        accelerators=accelerators,
        driver=_line(root / "sys/module/amdgpu/version") or _line(root / "sys/module/nvidia/version"),
        runtime=_line(root / "opt/rocm/.info/version") or _cuda_version(root),
        firmware=firmware,
        clocks_mhz=clocks,
        cpu_governor=_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    )


def _line(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip().splitlines()[0]
    except (OSError, IndexError):
        return None


def _field(path: Path, name: str) -> str | None:
    """Of lines `name : value`; the first of that name."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name]
    return found[0] if found else None


def _shell_value(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = [line.partition("=")[2].strip().strip('"') for line in lines if line.startswith(f"{name}=")]
    return found[0] if found else None


def _highest_mhz(path: Path) -> int | None:
    """Of lines `0: 500Mhz *`."""
    try:
        words = path.read_text().replace("*", "").split()
    except OSError:
        return None
    values = [int(word[:-3]) for word in words if word.lower().endswith("mhz") and word[:-3].isdecimal()]
    return max(values, default=None)


def _cuda_version(root: Path) -> str | None:
    try:
        text = (root / "usr/local/cuda/version.json").read_text()
    except OSError:
        return None
    return text.partition('"version"')[2].partition('"')[2].partition('"')[0] or None
