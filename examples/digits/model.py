"""Write a small Vision Transformer with random weights, the same each time, into .demo/tiny-vit: the base model of job.yaml.

It has learnt nothing, so all that the job reaches comes from its adapter and its head. Run from anywhere: python examples/digits/model.py
"""

import sys
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

FOLDER = Path(__file__).resolve().parents[2] / ".demo" / "tiny-vit"
SEED = 7


def write_model(folder: Path) -> Path:
    """Write the model and its image processor into ``folder``, and return it."""
    torch.manual_seed(SEED)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{write_model(FOLDER)}\n")
