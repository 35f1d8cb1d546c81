"""A hub behind a real server, and Hugging Face's own unmodified clients that ask it in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from safetensors.numpy import save

from hub.folder_store import FolderStore
from hub.objects import ObjectStore
from tests.http_clients import patient_request
from tests.hub.serving import Hub, listening, made_hub
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE


@dataclass
class Endpoint:
    """A hub behind a real server."""

    hub: Hub
    url: str
    home: Path
    """Where clients keep their cache."""

    def run(self, program: str, role: str = "read", **more: str) -> Any:
        """Run a program of a client in a process of its own; return what it assigns to ``answer``."""
        code = f"import json, os\nfrom pathlib import Path\nfrom huggingface_hub import *\n{program}\nprint('ANSWER', json.dumps(answer))"
        return self.run_client([sys.executable, "-c", code], role, **more)

    def run_client(self, command: list[str], role: str, **more: str) -> Any:
        """Run a client with ``HF_ENDPOINT`` and a token, and nothing else that is ours; return the JSON that it prints after ANSWER."""
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WEGEFT_")) and "proxy" not in name.lower()
        }
        environment = clean | {"HF_ENDPOINT": self.url, "HF_TOKEN": self.hub.tokens.get(role, role), "HF_HOME": str(self.home)} | more
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.rpartition("ANSWER")[2])


@contextmanager
def new_endpoint(folder: Path, store: ObjectStore | None = None) -> Iterator[Endpoint]:
    with made_hub(f"sqlite:///{folder / 'hub.db'}", store or FolderStore(folder / "blobs")) as hub, listening(hub.app) as url:
        yield Endpoint(hub, url, folder / "home")


def ask(endpoint: Endpoint, method: str, path: str, role: str = "read", **more: Any) -> httpx2.Response:
    headers = endpoint.hub.bearer(role) if role else {}
    return patient_request(method, endpoint.url + path, headers=headers | more.pop("headers", {}), **more)


def sound_files(fill: float = 0.5) -> dict[str, bytes]:
    """Return the files of an adapter that passes the gate; two fills make two adapters."""
    tensors: dict[str, Any] = {}
    for name in ("q_proj", "v_proj"):
        module = f"base_model.model.model.layers.0.self_attn.{name}"
        tensors[f"{module}.lora_A.weight"] = np.full((4, 16), fill, np.float32)
        tensors[f"{module}.lora_B.weight"] = np.full((8, 4), fill, np.float32)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    described = config | {"base_model_name_or_path": "org/base", "bias": "none"}
    return {CONFIG_FILE: json.dumps(described).encode(), WEIGHTS_FILE: save(tensors)}


def write_adapter(folder: Path) -> Path:
    """Write the files of an adapter into a new folder and return it."""
    folder.mkdir()
    for name, content in sound_files().items():
        (folder / name).write_bytes(content)
    return folder
