"""`json_schema`: 1.0 where the completion is JSON that fits a schema.

Paper: structured output as a verifiable constraint, IFEval's JSON instruction (https://huggingface.co/papers/2311.07911,
table 1), with the schema language of https://json-schema.org instead of well-formedness alone. `jsonschema` judges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError, importing_extra
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["JSONSchema"]

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass
class JSONSchema:
    """Read each completion as JSON and check it against a schema.

    Args:
        schema: of every completion; without it, the column `schema` has one for each, an object or its JSON text.
        in_fence: the JSON may stand in a fenced code block, the last one, with any text around it; else the whole
            completion is JSON.
        well_formed: the score of JSON that does not fit.

    Raises:
        InputError: the schema is none, or jsonschema is not installed.

    Example:
        >>> reward = JSONSchema({"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}})
        >>> reward(completions=['{"age": 7}', '{"age": "seven"}', "seven"])
        [1.0, 0.0, 0.0]
    """

    __name__ = "json_schema"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    example_params: ClassVar[dict[str, Any]] = {"schema": {"required": ["age"]}}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "?", "completion": '{"age": 7}', "schema": {"required": ["age"]}, "score": 1.0},
        {"prompt": "?", "completion": "{}", "schema": {"required": ["age"]}, "score": 0.0},
        {"prompt": "?", "completion": '{"age": 7', "schema": {"required": ["age"]}, "score": 0.0},
        {"prompt": "?", "completion": "", "schema": {"required": ["age"]}, "score": 0.0},
    )

    schema: dict[str, Any] | None = None
    in_fence: bool = True
    well_formed: float = 0.0

    def __post_init__(self) -> None:
        if self.schema is not None:
            _validator(self.schema)  # a schema that is none stops the recipe, not its first batch

    @property
    def requires_columns(self) -> tuple[str, ...]:
        """The column `schema`, where the reward has none of its own."""
        return () if self.schema is not None else ("schema",)

    def __call__(self, completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where there is no schema.

        Args:
            columns: `schema`, B schemas, where the reward has none of its own.
        """
        schemas = [self.schema] * len(completions) if self.schema is not None else columns.get("schema")
        if schemas is None and completions:
            raise InputError(
                "json_schema has no schema, and the data no column 'schema'", hint="schema: {type: object}"
            )
        return [self._score(to_text(text), schema) for text, schema in zip(completions, schemas or (), strict=True)]

    def _score(self, text: str, schema: Any) -> float | None:
        if schema is None:
            return None
        validator = _validator(json.loads(schema) if isinstance(schema, str) else schema)
        # The last: models put a draft or the question's example first.
        fenced = _FENCE.findall(text) if self.in_fence else []
        try:
            value = json.loads(fenced[-1] if fenced else text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):  # brackets in brackets by the thousand
            return 0.0
        return 1.0 if validator.is_valid(value) else self.well_formed


def _validator(schema: Mapping[str, Any] | bool) -> Any:
    with importing_extra("json_schema", "jsonschema", "json"):
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
    kind = validator_for(schema)  # by its `$schema`
    try:
        kind.check_schema(schema)
    except SchemaError as cause:
        raise InputError(
            f"json_schema cannot use its schema: {cause.message}", hint="https://json-schema.org"
        ) from cause
    return kind(schema)


def _refuse_constant(constant: str) -> Any:
    """Refuse `NaN` and `Infinity`, which Python reads and JSON does not have."""
    raise ValueError(constant)
