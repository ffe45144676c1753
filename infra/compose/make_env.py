"""Write a password into ``.env`` for each that docker-compose.yml demands and ``.env`` does not hold yet.

Nothing that has a value is changed, so it is safe to run again and after an update that demands more. The file can be
read by its owner alone, before a password is in it.
"""

import os
import re
import secrets
import sys
import tempfile
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parents[2]
_DEMANDED = re.compile(r"\$\{([A-Z0-9_]+):\?")


def make_env(compose: Path, env: Path) -> list[str]:
    """Add what is missing.

    Returns:
        The names that were given a value now.
    """
    text = env.read_text() if env.exists() else ""
    demanded = dict.fromkeys(_DEMANDED.findall(compose.read_text()))
    held = dotenv_values(env, interpolate=False) if env.exists() else {}
    missing = [name for name in demanded if not held.get(name)]
    kept = [line for line in text.splitlines() if line.split("=")[0].strip() not in missing]
    # Hexadecimal: no letter that a URL, a shell or Compose would take for something else.
    lines = [*kept, *(f"{name}={secrets.token_hex(24)}" for name in missing)]
    _replace(env, "".join(f"{line}\n" for line in lines))
    return missing


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


if __name__ == "__main__":
    made = make_env(ROOT / "docker-compose.yml", ROOT / ".env")
    sys.stdout.write(f".env: {', '.join(made) if made else 'nothing was missing'}\n")
