"""Adapters that exports have to treat specially."""

import torch
from peft import PeftModel

from tests.method.models import adapted, llama


@torch.no_grad()
def head_trained() -> PeftModel:
    """Return an adapter that trained the output layer in full."""
    model = adapted(llama(), modules_to_save=["lm_head"])
    model.get_output_embeddings().weight.mul_(-0.5)
    return model
