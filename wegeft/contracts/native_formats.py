"""What a version's weights are stored as, which says what reads them as they are."""

from __future__ import annotations

from typing import Literal

NativeFormat = Literal["wegeft", "lora", "peft"]
"""WeGeFT's generators; LoRA's pairs of factors, which every engine that knows LoRA reads; or another form that PEFT alone reads."""


def native_format(method: str) -> NativeFormat:
    """Return what versions of a method are stored as."""
    match method:
        case "wegeft":
            return "wegeft"
        case "lora" | "rslora":
            return "lora"
        case _:
            return "peft"
