"""A device by what its driver, a cloud or a user calls it: `NVIDIA H100 80GB HBM3` is `h100`."""

from __future__ import annotations

import re

from sim.hardware import DEVICES, GIB, Device

MAKER_AND_FORM = re.compile(r"nvidia|amd|intel|geforce|instinct|tesla|platinum|tensor|core|gpu|sxm\d?|oam|hbm\d\w?")
"""words that tell no two known devices apart"""
SIZE = re.compile(r"(\d+) ?gi?b")


def device_name(text: str) -> str:
    """The catalogue's name of a device.

    Maker, series, socket and kind of memory may be in the text or not; a size of memory must be the device's. Another
    card of the same chip is not taken for it: an H100 PCIe is slower than the SXM one that is known.

    Raises:
        ValueError: no device is called so; lists those there are.
    """
    lower = text.lower()
    sizes = {int(size) for size in SIZE.findall(lower)}
    words = [word for word in re.findall(r"[a-z0-9]+", SIZE.sub(" ", lower)) if not MAKER_AND_FORM.fullmatch(word)]
    for device in DEVICES.values():
        if words and "".join(words) == _bare(device) and sizes <= {round(device.memory_bytes / GIB)}:
            return device.name
    raise ValueError(
        f"device must be one of {', '.join(DEVICES)}, got {text!r}; give a latency file for any other, such as a "
        "slower card of the same chip"
    )


def _bare(device: Device) -> str:
    """The name without size and hyphens."""
    return re.sub(r"[^a-z0-9]", "", SIZE.sub("", device.name))
