"""The door through which PEFT learns of the method: one name in its closed enumeration, then its own ``register_peft_method``."""

from typing import Any

import peft
from peft.utils.peft_types import PeftType, register_peft_method

SUPPORTED_PEFT = "0.21"
"""The release of PEFT whose internals this package was read against; pinned in the distribution's requirements too."""


def _add_member(name: str) -> PeftType:
    """Return the member ``PeftType.<name>``, adding it as the enumeration's own constructor would.

    PEFT compares, maps and serialises methods by members of a closed ``str`` enumeration, so a method from outside must become one.
    Raises ``ImportError`` on a release of PEFT whose internals were not checked.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    if not peft.__version__.startswith(f"{SUPPORTED_PEFT}."):
        raise ImportError(f"wegeft.method needs PEFT {SUPPORTED_PEFT}.x and found {peft.__version__}")
    member: Any = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return PeftType(name)


WEGEFT = _add_member("WEGEFT")


def register(config_class: type, tuner_class: type) -> None:
    """Make ``get_peft_model`` and ``PeftModel.from_pretrained`` know the method; a second call changes nothing."""
    if WEGEFT not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="wegeft", config_cls=config_class, model_cls=tuner_class, prefix="wegeft_")
