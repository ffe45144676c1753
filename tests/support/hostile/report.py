"""What a run says to people: the table, and the page of the documents."""

# ruff: noqa: E501

from churn.wording import markdown_table
from tests.support.hostile.harness import DEADLINE_S, ENDS_BADLY, ENDS_WELL, Tally


def table(tally: Tally) -> str:
    """Write inputs by reader and outcome as Markdown."""
    columns = (*ENDS_WELL, *ENDS_BADLY)
    totals = {outcome: sum(counts[outcome] for counts in tally.counts.values()) for outcome in columns}
    rows = [
        (name, f"{sum(counts.values()):,}", *(f"{counts[outcome]:,}" for outcome in columns))
        for name, counts in [*tally.counts.items(), ("**all**", totals)]
    ]
    return markdown_table(("reader", "inputs", *columns), rows, "-" + "r" * (1 + len(columns)), is_markup=True)


def report(tally: Tally) -> str:
    """Write docs/hostile-input.md."""
    return f"""# Hostile input

Written by `python -m tests.hostile`, which gave {tally.n:,} bad inputs to every reader, parser and flag: files of rows
(Parquet, CSV, JSON Lines, JSON arrays, packed or not; raw activity and encoded rows), booster files, feature names,
golden rows, reference profiles, names of variants, weeks, aliases, the environment, secrets, database URLs and command
lines.

{table(tally)}

The inputs are seeded: valid files with bits flipped, bytes set, parts cut out, doubled and spliced, values swapped for
hostile ones, whole documents changed at one place; and, made by hand, bombs (compressed, nested, claimed lengths),
look-alikes, other encodings, and pickles and an `MLmodel` that would leave a file behind if any of their code were run.

- **Ended well**: *refused*, by an error of ours in one printable line; *quarantined*, at least one row, with its rule;
  *wrong usage*, exit status 2; or *read alike*: the input was taken, and what came of it is what an independent reading
  gives. For rows that is plain Python's parse, contract, choice of rows and encoding, scored by `Booster.predict`; for
  boosters a walk of the trees split by split. Rows that stay beside quarantined ones are compared as well.
- **Ended badly**: an *unclear message* (several lines, control characters, over 2,500 characters), *another exception*,
  a *wrong result*, a *hang* (over {DEADLINE_S:g} s), a *crash* of the process, or *over 1 GB* of memory.

Each input ran in a process of its own kind under a limit of 1 GB beyond what its libraries take. The most that one took
was {tally.most_memory / 1e6:,.0f} MB, the longest {tally.longest_s:.1f} s; all of them took {tally.took_s / 60:.1f} minutes.

Not covered: a Parquet file whose footer lies about how far its pages unpack. Arrow believes the pages, so that such a file can
take more memory than this; give the process a limit of its own where others than your own systems write the extracts.
"""
