"""Columns of Parquet files that Polars does not take, or not as text, as columns that it takes. Pure."""

import pyarrow as pa
import pyarrow.compute as pc

from churn.errors import InputError, raised_as

_UTC = {"Z", "z", "zulu", "UTC", "utc"}
_NOT_IMPLEMENTED = ("Not yet implemented", "NotImplemented", "not supported", "not built")


def convert(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert columns to types that Polars reads, and bytes to text; raises ``InputError`` for an unknown time zone."""
    arrays = [_convert(name, array) for name, array in zip(batch.schema.names, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _convert(name: str, array: pa.Array) -> pa.Array:
    if isinstance(array.type, pa.UuidType):
        array = pa.array([None if one is None else str(one) for one in array.to_pylist()], pa.string())
    kind, types = array.type, pa.types
    if types.is_dictionary(kind) and not is_text(kind.value_type):
        return _convert(name, array.dictionary_decode())
    if types.is_decimal256(kind):
        return array.cast(pa.string())  # exact
    if is_bytes(kind):
        try:
            return array.cast(pa.large_string() if types.is_large_binary(kind) else pa.string())
        except pa.ArrowInvalid:
            return array  # the contract quarantines bytes that are no text
    if types.is_timestamp(kind) and kind.tz is not None:
        return _with_known_zone(name, array)
    return array


def _with_known_zone(name: str, array: pa.Array) -> pa.Array:
    unit, zone = array.type.unit, array.type.tz
    if zone in _UTC:
        return array.cast(pa.timestamp(unit, "UTC"))
    problem = f"column {name!r} has instants of the time zone {zone!r}, which is not known"
    with raised_as(InputError, problem, pa.ArrowInvalid):
        local = pc.local_timestamp(array)
    if not zone.startswith(("+", "-")) or zone.endswith(":00"):
        return array
    return pc.binary_join_element_wise(local.cast(pa.string()), zone, "")  # as text, since Polars knows no such zone


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type is bytes, in which some tools store text."""
    is_plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(is_plain or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind))


def is_not_implemented(error: BaseException) -> bool:
    """Return whether Arrow cannot read a valid file; it says so in words, and with errors of several kinds."""
    return isinstance(error, pa.ArrowNotImplementedError) or any(part in str(error) for part in _NOT_IMPLEMENTED)
