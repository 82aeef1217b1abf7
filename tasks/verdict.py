"""Running a Great Expectations suite over a table, and the verdict on every row.

Every expectation carries a short reason in its `meta` and says in its description what is expected; the verdict on a
row is what Great Expectations reports about it, so the Data Docs and the quarantine cannot disagree.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult
    from great_expectations.data_context import AbstractDataContext
    from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True)
class RowFailure:
    """Why a row was refused."""

    row: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What the suite said: the first broken expectation of every row that breaks any, and the whole result."""

    failures: dict[int, RowFailure]
    result: ExpectationSuiteValidationResult


def load_great_expectations() -> Any:
    """The library, with its usage statistics off; only validation needs it, and importing it takes seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    with warnings.catch_warnings():
        # It imports modules that the standard library gives up; nobody here can change that.
        warnings.simplefilter("ignore", DeprecationWarning)
        import great_expectations
        import great_expectations.expectations
    return great_expectations


def open_context() -> AbstractDataContext:
    """A Great Expectations context that lives in memory and sends nothing anywhere."""
    context = load_great_expectations().get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    return context


def validate_table(
    context: AbstractDataContext, table: pd.DataFrame, expectations: list[Expectation], *, stage: str, asset: str
) -> Verdict:
    """Run the expectations over a table with the columns `row` and `sample_id`; the names are what the docs show.

    Raises: RuntimeError if an expectation could not be evaluated: its rows have no verdict then.
    """
    gx = load_great_expectations()
    suite: ExpectationSuite = context.suites.add(gx.ExpectationSuite(name=stage, expectations=expectations))
    source = context.data_sources.add_pandas("tables")
    batch = source.add_dataframe_asset(asset).add_batch_definition_whole_dataframe("rows")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=stage, data=batch, suite=suite))
    result = definition.run(
        batch_parameters={"dataframe": table},
        result_format={
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["row", "sample_id"],
            "return_unexpected_index_query": False,
        },
    )
    return Verdict(failures=_failures(result), result=result)


def _failures(result: ExpectationSuiteValidationResult) -> dict[int, RowFailure]:
    failures: dict[int, RowFailure] = {}
    for item in result.results:
        config = item.expectation_config
        if not item.success and not item.result.get("unexpected_count"):
            raise RuntimeError(
                f"expectation {config.type} on {config.kwargs.get('column', 'the table')} could not be evaluated: "
                f"{_exception_message(item.exception_info)}"
            )
        for place in item.result.get("unexpected_index_list") or ():
            row = int(place["row"])
            found = ", ".join(
                f"{name} is {_readable(value)}"
                for name, value in place.items()
                if name != "row" and (name != "sample_id" or "sample_id" in config.kwargs.values())
            )
            reason, detail = config.meta["reason"], f"{found}; expected: {config.description}"
            if row in failures:
                first = failures[row]
                failures[row] = RowFailure(row, first.reason, f"{first.detail}; also {reason} ({found})")
            else:
                failures[row] = RowFailure(row, reason, detail)
    return failures


def _readable(value: Any) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _exception_message(info: Any) -> str:
    """Great Expectations reports either one exception or one per metric."""
    if "exception_message" in info:
        return str(info["exception_message"])
    return "; ".join(str(part.get("exception_message")) for part in info.values()) or "no reason was given"
