"""The adapter that a request's path names, read alike by every route."""

from typing import Annotated

from fastapi import Depends

from wegeft.contracts.adapter import AdapterName, check_segment


async def _adapter_name(namespace: str, name: str) -> AdapterName:  # a plain function would wait for a thread
    return AdapterName(namespace=check_segment(namespace, "namespace"), name=check_segment(name))


Name = Annotated[AdapterName, Depends(_adapter_name)]
"""As a FastAPI parameter, of paths with ``{namespace}`` and ``{name}``; raises :class:`InvalidReference`."""
