"""``python -m tests.hostile``: the full run, its table, and docs/hostile-input.md, which it writes."""

import argparse
import sys

from tests.support.hostile.harness import ROOT, run, shares
from tests.support.hostile.readers import FAMILIES
from tests.support.hostile.report import report, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--family", help="one family only; nothing is written then")
    parser.add_argument("--n", type=int, help="about so many inputs; default: all")
    parser.add_argument("--index", type=int, help="one input of the family, judged in this process")
    args = parser.parse_args()
    families = [family for family in FAMILIES if args.family in (None, family.name)]
    if args.index is not None:
        _judge_one(families[0], args.index)
        return
    tally = run(list(shares(families, args.n)))
    print(f"{table(tally)}\n\nlongest: {tally.longest_s:.1f} s, {tally.longest}")
    for family, index, outcome, detail in tally.bad:
        print(f"{family} {index}: {outcome}: {detail}")
    if args.family is None and args.n is None and not tally.bad:
        (ROOT / "docs/hostile-input.md").write_text(report(tally))
    sys.exit(bool(tally.bad))


def _judge_one(family, index: int) -> None:
    import tempfile
    from pathlib import Path

    label, payload = family.make(index)
    print(label, payload if not isinstance(payload, bytes) or len(payload) < 20_000 else payload[:500])
    with tempfile.TemporaryDirectory() as scratch:
        print(family.judge(payload, Path(scratch)))


if __name__ == "__main__":
    main()
