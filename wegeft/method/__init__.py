"""The method: a PEFT tuner, its exact conversion to LoRA, and the algebra of generators. Importing it registers it with PEFT."""

from wegeft.method.config import WeGeFTConfig
from wegeft.method.conversion import to_lora
from wegeft.method.inspection import adapter_state_dict, count_parameters, lora_equivalent_size
from wegeft.method.layer import WeGeFTLinear
from wegeft.method.model import WeGeFTModel
from wegeft.method.registration import WEGEFT, register
from wegeft.method.sharing import Group, plan_groups
from wegeft.method.targets import resolve_targets

register(WeGeFTConfig, WeGeFTModel)

__all__ = [
    "WEGEFT",
    "Group",
    "WeGeFTConfig",
    "WeGeFTLinear",
    "WeGeFTModel",
    "adapter_state_dict",
    "count_parameters",
    "lora_equivalent_size",
    "plan_groups",
    "resolve_targets",
    "to_lora",
]
