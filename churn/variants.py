"""The variant: which geography and company a model, a file and a prediction belong to.

Every name derived from a variant (S3 prefix, experiment, registered model) is built here and nowhere else. MLflow's
registry, not this module, has the list of existing variants.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher

from churn.errors import UsageError
from churn.wording import listed

BASE_KEY = "base"
MAX_PART_LENGTH = 64

_PART = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
_KEY_AT_END = re.compile(r"(?:^|[^a-z0-9])((?:geography|company)-.*)")


@dataclass(frozen=True)
class Variant:
    """One model variant; no geography and no company is the base variant.

    Parts are case-folded, so ``Variant("US")`` equals ``Variant("us")``. Sort by ``key``: a part may be ``None``. After
    folding, a part must be ``[a-z0-9]+(_[a-z0-9]+)*`` of at most 64 characters, else ``UsageError`` is raised.

    >>> Variant("EU", "ClientB").registered_model
    'churn-prediction-model-eu-clientb'
    >>> Variant(company="ClientA").prefix
    'company-clienta/'
    """

    geography: str | None = None
    company: str | None = None

    def __post_init__(self) -> None:
        for part in ("geography", "company"):
            object.__setattr__(self, part, _fold(part, getattr(self, part)))

    @property
    def _labelled_parts(self) -> list[str]:
        labels = (("geography", self.geography), ("company", self.company))
        return [f"{label}-{value}" for label, value in labels if value is not None]

    @property
    def key(self) -> str:
        """Reversible name: the Dagster partition key, and ``variant`` in PostgreSQL."""
        return ".".join(self._labelled_parts) or BASE_KEY

    @property
    def prefix(self) -> str:
        """Prefix of the variant's files in the bucket; empty for the base variant."""
        return "".join(f"{part}/" for part in self._labelled_parts)

    @property
    def experiment(self) -> str:
        return "-".join(["churn_prediction", *self._labelled_parts])

    @property
    def registered_model(self) -> str:
        """Registered model name. Lossy: ``…-us`` may be a geography or a company, so tags decide."""
        parts = [part for part in (self.geography, self.company) if part is not None]
        return "-".join(["churn-prediction-model", *parts])

    @property
    def scopes(self) -> list[str]:
        """The names of what includes the variant, where accounts are erased: all, itself, and its company."""
        return [self.key, "", *([f"company={self.company}"] if self.company else [])]

    @classmethod
    def from_key(cls, key: str) -> "Variant":
        """Return the variant of a :attr:`key`; raises ``UsageError`` if it is none."""
        parts = (part.partition("-") for part in key.split(".")) if key != BASE_KEY else ()
        fields = {label: value for label, _, value in parts}
        variant = cls(**fields) if fields.keys() <= {"geography", "company"} else None
        if variant is None or variant.key != key:
            meant = variant.key if variant is not None else _keys_of(key.casefold())
            keys = "base, geography-<g>, company-<c> or geography-<g>.company-<c>"
            raise UsageError(f"variant key {key!r} is not one of {keys}{f'; did you mean {meant}?' if meant else ''}")
        return variant

    @classmethod
    def from_model_name(cls, name: str) -> "Variant":
        """Return the variant of a registered model's name that ends in a key, or is ours and has both parts or none.

        Raises ``UsageError`` if the name tells no variant, or two: that of ours with one part.

        >>> Variant.from_model_name("risk-Geography-US").key, Variant.from_model_name("churn-prediction-model-eu-b").key
        ('geography-us', 'geography-eu.company-b')
        """
        folded, ours = name.casefold(), cls().registered_model
        with suppress(UsageError):
            if match := _KEY_AT_END.search(folded):
                return cls.from_key(match[1].replace("-company-", ".company-"))
            head, *parts = folded.removeprefix(ours).split("-")
            if folded.startswith(ours) and not head and len(parts) in (0, 2):
                return cls(*parts)
        such = "one that ends in geography-us, company-clienta or geography-eu-company-clientb does"
        remedy = "name it by --geography, --company or --variant"
        raise UsageError(f"the name {name!r} does not tell its variant, as {such}; {remedy}")

    def __str__(self) -> str:
        return self.key


def _keys_of(name: str) -> str:
    """Return the keys that a name without ``geography-`` or ``company-`` may stand for."""
    return f"geography-{name} or company-{name}" if _PART.fullmatch(name) and len(name) <= MAX_PART_LENGTH else ""


def _fold(part: str, value: str | None) -> str | None:
    if value is None:
        return None
    folded = value.casefold()
    # Folding turns some other letters, such as the long s, into ASCII: a look-alike must not be accepted.
    if value.isascii() and len(folded) <= MAX_PART_LENGTH and _PART.fullmatch(folded):
        return folded
    allowed = f"letters, digits and single underscores between them, at most {MAX_PART_LENGTH} characters"
    raise UsageError(f"{part} {value!r} is not allowed: {allowed}{_hint(part, folded)}")


def _hint(part: str, folded: str) -> str:
    ascii_only = folded.removeprefix(f"{part}-").encode("ascii", "ignore").decode()
    meant = re.sub(r"[^a-z0-9]+", "_", ascii_only).strip("_")[:MAX_PART_LENGTH].strip("_")
    return f"; did you mean {meant!r}?" if meant else ""


def fold_name(text: str) -> str:
    """Return a typed key, or name of a geography or company, folded; raises ``UsageError`` if it can be neither."""
    folded = text.casefold() if text.isascii() else text
    return folded if _keys_of(folded) else Variant.from_key(folded).key


def find_variant(name: str, known: Callable[[], Iterable[Variant]]) -> Variant:
    """Return the variant of a folded name; raises ``UsageError`` if it is no key, nor that of one known variant."""
    if name == BASE_KEY or not _keys_of(name):
        return Variant.from_key(name)
    there = list(known())
    meant = [one for one in there if name in (one.geography, one.company)]
    if len(meant) == 1:
        return meant[0]
    keys = listed([one.key for one in meant or there]) or "none yet"
    problem = f"is ambiguous: {keys}" if meant else f"is not known (known are: {keys})"
    raise UsageError(f"variant {name!r} {problem}; name it by its key, such as {_keys_of(name)}")


def similar(variant: Variant, existing: Iterable[Variant]) -> Variant | None:
    """Return the other variant whose name differs least, if it is by a letter, or by two of a long name."""

    def edits(other: Variant) -> int:
        codes = SequenceMatcher(None, variant.registered_model, other.registered_model).get_opcodes()
        return sum(max(i2 - i1, j2 - j1) for kind, i1, i2, j1, j2 in codes if kind != "equal")

    close = min((one for one in existing if one != variant), key=edits, default=None)
    return close if close and edits(close) <= max(1, len(variant.key) // 10) else None


def nearest(variant: Variant, existing: Iterable[Variant]) -> str:
    """Return ``"; did you mean …?"`` naming the closest existing variant, or ``""``."""
    close = similar(variant, existing)
    return f"; did you mean {close.key!r}?" if close else ""
