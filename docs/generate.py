"""Writes the pages that are made from the code: python docs/generate.py; with --check only tells whether they are up to date."""

from __future__ import annotations

import difflib
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package of this checkout
warnings.simplefilter("ignore")  # torch announces what it drops while its names are listed
import generate_api  # noqa: E402
import generate_ops  # noqa: E402

PAGES = {"api.md": generate_api.text, "ops.md": generate_ops.text}


def main(arguments: list[str]) -> int:
    """Writes or checks all pages; 1 where --check finds one that is not up to date."""
    stale = 0
    for name, make in PAGES.items():
        path, made = HERE / name, make()
        held = path.read_text(encoding="utf-8") if path.exists() else ""
        if "--check" not in arguments:
            path.write_text(made, encoding="utf-8")
        elif held != made:
            stale = 1
            sys.stdout.writelines(list(difflib.unified_diff(held.splitlines(True), made.splitlines(True), name, "as generated", n=1))[:60])
            print(f"{name} is not up to date: python docs/generate.py")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
