"""The method: a PEFT tuner, its exact conversion to LoRA, and the algebra of generators. Importing it registers it with PEFT."""

from wegeft.method.authors_checkpoints import import_gift, import_peft_fork
from wegeft.method.config import WeGeFTConfig
from wegeft.method.conversion import to_lora
from wegeft.method.export_folder import Export
from wegeft.method.gguf_adapter import to_gguf
from wegeft.method.inspection import adapter_state_dict, count_parameters, lora_equivalent_size
from wegeft.method.layer import WeGeFTLinear
from wegeft.method.merged_model import merge_into
from wegeft.method.mlx_adapter import to_mlx
from wegeft.method.model import WeGeFTModel
from wegeft.method.registration import WEGEFT, register
from wegeft.method.sharing import Group, plan_groups
from wegeft.method.targets import resolve_targets

register(WeGeFTConfig, WeGeFTModel)

__all__ = [
    "WEGEFT",
    "Export",
    "Group",
    "WeGeFTConfig",
    "WeGeFTLinear",
    "WeGeFTModel",
    "adapter_state_dict",
    "count_parameters",
    "import_gift",
    "import_peft_fork",
    "lora_equivalent_size",
    "merge_into",
    "plan_groups",
    "resolve_targets",
    "to_gguf",
    "to_lora",
    "to_mlx",
]
