"""A year in the life of twenty variants, end to end on real services: ``python -m benchmarks.year``.

What happened is written to ``benchmarks/YEAR.md`` with a picture; :mod:`tests.support.year` simulates it.
"""

import argparse
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from churn.wording import markdown_table
from tests.support.year import N_ACCOUNTS, N_VARIANTS, N_WEEKS, Year, names_of, simulate_year

FOLDER = Path(__file__).parent


def report(year: Year) -> str:
    """Describe the year in Markdown."""
    leaks = "; ".join(year.leaks) or "none"
    lines = [
        "# A simulated year",
        "",
        f"Written by `just year` on {datetime.now(UTC):%Y-%m-%d} in {year.seconds / 60:.0f} minutes: "
        f"{len(year.first_champions)} variants in the realistic world (all effects of `tests/support/world.py` but "
        f"`restated`), {year.n_scored} batches of every second Monday, labels of three months. "
        f"For {len(year.twisted)} variants the world changed after their champions were trained: engaged players leave "
        "sooner, where they stayed longer before. "
        f"{len(year.worse)} others get a challenger that knows less, without features over months, named by hand. "
        "Labels mature four months after a score, so low performance requests training from March on at the soonest, "
        "and a challenger is compared from the fifth month after its training.",
        "",
    ]
    promoted, withdrawn = (names_of({one for _, one in events}) for events in (year.promoted, year.withdrawn))
    alerted = names_of({variant for variant, _ in year.alerts})
    n_by_hand = sum(not outcome.gate.is_passed for outcome in year.first_champions.values())
    outcomes = [
        ("first models that failed the gate and were named champion by hand", "few", n_by_hand),
        (
            "variants with an alert of drift, performance or calibration, one other at most",
            names_of(year.twisted),
            alerted,
        ),
        (
            "variants for which training was requested, one other at most",
            f"some of {names_of(year.twisted)}",
            names_of(year.triggered),
        ),
        ("variants with a challenger promoted", "some of these", promoted),
        ("variants with a challenger withdrawn, at least", names_of(year.worse), withdrawn),
        (f"leaks found in {len(year.first_champions) + len(year.trained)} trainings", "none", leaks),
        ("rollback restores identical scores", "yes", "yes" if year.rollback_is_identical else "no"),
        ("batches of which the trail names another champion", 0, len(year.wrong_champions)),
    ]
    happened = [(week, variant, f"alert `{kind}`: {why}") for (variant, kind), (week, why) in year.alerts.items()]
    happened += [(week, variant, f"training requested: {why}") for (week, variant), why in year.reasons.items()]
    happened += [(week, variant, f"promoted: {event.reason}") for (week, variant), event in year.promoted.items()]
    happened += [(week, variant, f"withdrawn: {event.reason}") for (week, variant), event in year.withdrawn.items()]
    happened.sort(key=lambda row: (row[0], str(row[1])))
    lines += [markdown_table(("what", "expected", "happened"), outcomes), ""]
    lines += [markdown_table(("week", "variant", "what happened"), happened)]
    return "\n".join([*lines, "", "![ROC AUC of the champions, week by week](year.png)", ""])


def draw(year: Year, path: Path) -> None:
    """Draw the champions' AUC by scored week: all variants thin, the twisted ones by name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = dict(zip((v.key for v in year.twisted), ("#c1442e", "#2f6f9f", "#7a4fa3", "#3d8b57"), strict=False))
    for (key,), rows in year.auc.filter(pl.col("roc_auc").is_not_null()).group_by("variant", maintain_order=True):
        label, style = (
            (str(key), {"color": colours[key], "lw": 1.8})
            if key in colours
            else (None, {"color": "#bbbbbb", "lw": 0.8})
        )
        axes.plot(rows["scored_week"].to_list(), rows["roc_auc"].to_list(), label=label, **style)
    for week, variant in year.promoted:
        axes.axvline(week, color=colours.get(variant.key, "#bbbbbb"), ls=":", lw=1)
    axes.set_title("Champions by scored week: retrained, promoted (dotted)", loc="left", fontsize=11)
    axes.set_ylabel("ROC AUC, once labels had matured")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower right")
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Live through it and write it down."""
    parser = argparse.ArgumentParser(prog="benchmarks.year", description=__doc__)
    parser.add_argument("--weeks", type=int, default=N_WEEKS)
    parser.add_argument("--variants", type=int, default=N_VARIANTS)
    parser.add_argument("--accounts", type=int, default=N_ACCOUNTS)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="churn-year-") as folder:
        Path(folder).chmod(0o755)
        year = simulate_year(
            Path(folder) / "home", n_weeks=args.weeks, n_variants=args.variants, n_accounts=args.accounts
        )
    (FOLDER / "YEAR.md").write_text(report(year))
    draw(year, FOLDER / "year.png")
    print(report(year))
    if year.disappointments:
        raise SystemExit("\n".join(year.disappointments))


if __name__ == "__main__":
    main()
