"""A query that a model describes, read in one go: FastAPI looks through the model anew each time, which takes longer than the check."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def reading_query(model: type[Model]) -> Callable[[Request], Coroutine[Any, Any, Model]]:
    """Return a FastAPI dependency that gives a request's query as ``model``; a field that is a tuple takes all of a parameter's values.

    Raises :class:`RequestValidationError` with everything that is wrong with it. The API's description does not see the model, so
    the route tells it by :func:`described_query`.
    """
    several = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is tuple}

    async def read(request: Request) -> Model:  # a plain function would wait for a thread
        given: dict[str, Any] = {}
        for name, value in request.query_params.multi_items():
            if name in several:
                given.setdefault(name, []).append(value)
            else:
                given[name] = value
        try:
            return model.model_validate(given)
        except ValidationError as error:
            problems = [{**found, "loc": ("query", *found["loc"])} for found in error.errors(include_url=False)]
            raise RequestValidationError(problems) from None

    return read


def described_query(model: type[BaseModel]) -> dict[str, Any]:
    """Return what a route says beside itself, its ``openapi_extra``, of a query that :func:`reading_query` reads."""
    schema = model.model_json_schema()
    required = schema.get("required", ())
    parameters = []
    for name, described in schema["properties"].items():
        told = {"description": described["description"]} if "description" in described else {}
        parameters.append({"name": name, "in": "query", "required": name in required, "schema": described, **told})
    return {"parameters": parameters}
