"""Command lines of churn and of the four scripts."""

# ruff: noqa: E501

# Inputs are tables.

import contextlib
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from churn.cli.main import main as cli
from experiment_tracking import log_model, promote_model, setup, train_model
from tests.support.hostile.harness import REFUSED, SAME, USAGE, require, require_clear
from tests.support.hostile.surroundings import NOWHERE, VALUES, environment, sendable
from tests.support.hostile.words import DAYS, PARTS, hostile_text

COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "churn": cli, "setup": setup.main, "log": log_model.main, "promote": promote_model.main, "train": train_model.main,
}  # fmt: skip
FLAGS = {
    "churn": ["score", "explain", "--week", "--as-of", "--account", "--variant", "--dagster-port", "--mlflow-port"],
    "score": ["--week", "--as-of"],
    "explain": ["--week", "--account", "--variant"],
    "erase": ["--account", "--variant"],
    "retain": ["--weeks"],
    "setup": ["--geography", "--company", "--variant", "--all", "--under"],
    "log": ["--geography", "--company", "--variant", "--all", "--under", "--alias"],
    "promote": ["status", "promote", "rollback", "share", "history", "--geography", "--variant", "--all", "--force", "--reason", "--share", "--on", "--dry-run"],
    "train": ["--geography", "--company", "--variant", "--all", "--under", "--as-of", "--trials", "--dry-run"],
}  # fmt: skip
GOOD = {
    "--week": ["2026-11-02"], "--as-of": ["2026-10-31"], "--account": ["7"], "--variant": ["base"], "--geography": ["US"],
    "--company": ["ClientA"], "--all": ["/dev/null"], "--under": ["geography-"], "--alias": ["challenger"], "--reason": ["because"],
    "--share": ["20"], "--on": ["2026-10-31"], "--trials": ["3"], "--weeks": ["0", "-1", "99999999999999999999", "5000"],
}  # fmt: skip
WORDS = [
    *PARTS,
    *DAYS,
    *VALUES,
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    "/nonexistent",
    "/",
    "-",
    "@x",
    "--",
    "-h=1",
    "--no-such-flag",
]


def judge_command(payload: object, folder: Path) -> str:
    """Run a command line against services that are not there."""
    assert isinstance(payload, list)
    command, *argv = (sendable(str(word)) for word in payload)
    said = io.StringIO()
    with environment(NOWHERE), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            COMMANDS[command](argv)
        except SystemExit as end:
            status = end.code
        else:
            status = 0
    if status == 0:
        require(
            bool({"-h", "--help"} & {word[:6] for word in argv}) or any(word.startswith("--h") for word in argv),
            "it went well",
        )
        return SAME
    lines = said.getvalue().strip().splitlines()
    require(status in (1, 2) and bool(lines), f"exit status {status}")
    if "usage:" not in lines[0]:
        require_clear("\n".join(lines))
    return USAGE if status == 2 else REFUSED


def mutate_command(chance: random.Random) -> list[str]:
    command = chance.choice(list(COMMANDS))
    argv = [command]
    if command == "churn":
        argv.append(chance.choice(("score", "score", "explain", "erase", "retain", "demo", "up")))
    if argv[-1] == "demo":
        return [*argv, "--week", "not-" + hostile_text(chance, DAYS)]
    if argv[-1] == "up":
        return [
            *argv,
            chance.choice(FLAGS["churn"][-2:]),
            chance.choice(("0x", "-1", "65536", "1" * 400, "99999", "nan", "")),
        ]
    if command == "promote":
        argv.append(chance.choice(("status", "promote", "rollback", "share", "history")))
    if chance.randrange(2):  # a command line that parses, but for what one flag holds
        flag = chance.choice([flag for flag in FLAGS[argv[1] if command == "churn" else command] if flag[0] == "-"])
        value = chance.choice(GOOD.get(flag, [""])) if chance.randrange(3) == 0 else hostile_text(chance, WORDS)
        argv.append(f"{flag}={value}" if flag in GOOD else flag)
        return argv + {"score": ["base"], "explain": ["--account=1"], "erase": ["--account=1"]}.get(argv[1], [])
    return [
        *argv,
        *(chance.choice((*FLAGS[command], hostile_text(chance, WORDS))) for _ in range(chance.randint(1, 4))),
    ]


LINES_OF_COMMANDS: Mapping[str, Callable[[], list[str]]] = {
    " ".join(words): (lambda words=words: list(words))
    for words in (
        ("promote", "share", "--share", "nan"), ("promote", "share", "--share", "inf"), ("promote", "share", "--share=-1"),
        ("promote", "share", "--share", "1e308"), ("promote", "share"), ("promote", "promote", "--force", "--all", "/dev/null"),
        ("promote", "history", "--on", "2026-02-30"), ("log", "--all", "/dev/zero"), ("log", "--all", "/"), ("log", "--all", "/proc/self/mem"),
        ("log", "--alias", "latest"), ("log", "--alias", "v3"), ("train", "--trials", "0"), ("train", "--trials", "9" * 5000),
        ("train", "--as-of", "9999-12-31"), ("churn", "score"), ("churn",), ("churn", "score", "base", "--as-of", "9" * 5000),
        ("churn", "explain", "--account", "9" * 5000), ("churn", "explain", "--account", "9223372036854775808"),
        ("churn", "up", "--dagster-port", "99999"), ("churn", "retain", "--weeks", "9" * 20), ("churn", "retain", "--weeks=-1"), ("churn", "up", "--mlflow-port=-1"), ("churn", "demo", "--week", "2026-11-03"),
    )
}  # fmt: skip
