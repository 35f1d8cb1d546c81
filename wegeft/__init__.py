"""WeGeFT: weight-generative fine-tuning as a PEFT method, and what the services around it agree on.

``import wegeft`` is light: it loads neither torch nor PEFT. Touching a name of the method (``wegeft.WeGeFTConfig``) or importing
``wegeft.method`` loads both and registers the method, after which ``peft.get_peft_model`` and ``PeftModel.from_pretrained`` know it.
"""

from importlib import import_module

_METHOD_NAMES = frozenset(
    [
        "WeGeFTConfig",
        "WeGeFTModel",
        "count_parameters",
        "import_gift",
        "import_peft_fork",
        "lora_equivalent_size",
        "merge_into",
        "resolve_targets",
        "to_gguf",
        "to_lora",
        "to_mlx",
    ]
)


def __getattr__(name: str) -> object:
    if name in _METHOD_NAMES:
        return getattr(import_module("wegeft.method"), name)
    raise AttributeError(f"module 'wegeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_METHOD_NAMES])
