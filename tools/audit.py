"""Known vulnerabilities of what synthseg needs at run time, by pip-audit: ``python -m tools.audit``.

Exit codes: 0 every package was looked up and none is known to be vulnerable; 1 some are; 3 no answer, for all or some:
without a database there is no audit, and nothing is said to be fine that was not looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.licences import closure, declared

VULNERABLE, UNKNOWN = 1, 3


def requirements() -> list[str]:
    """``name==version`` of all run-time packages that are installed here; of local builds (2.6.0+cpu) the public."""
    return [f"{name}=={package.version.partition('+')[0]}" for name, package in closure(declared()).items()]


def main(arguments: list[str]) -> int:
    pinned = requirements()
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "requirements.txt")
        asked.write_text("\n".join(pinned) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "-r", str(asked), "--no-deps", "--disable-pip", "-f", "json"]
        run = subprocess.run(
            [*command, "--progress-spinner", "off", *arguments], capture_output=True, text=True, check=False
        )
    return judge(pinned, run.stdout, run.stderr)


def judge(pinned: list[str], answer: str, complaint: str) -> int:
    """Say what pip-audit's answer amounts to; the exit code."""
    try:
        found = {one["name"]: one for one in json.loads(answer)["dependencies"]}
        vulnerable = [(one, v) for one in found.values() for v in one.get("vulns", [])]
    except (ValueError, KeyError, TypeError):
        last = (complaint.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(f"NO AUDIT: pip-audit gave no answer ({last}). This says nothing about any package.", file=sys.stderr)
        return UNKNOWN
    for one, flaw in vulnerable:
        fixed = ", ".join(flaw.get("fix_versions") or []) or "none yet"
        print(f"VULNERABLE: {one['name']} {one['version']}: {flaw['id']}, fixed in: {fixed}")
    unknown = [name for name in (p.partition("==")[0] for p in pinned) if "vulns" not in found.get(name, {})]
    if unknown:
        some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        print(
            f"NO AUDIT of {len(unknown)} of {len(pinned)} packages, which the database did not know: {some}",
            file=sys.stderr,
        )
    if vulnerable:
        return VULNERABLE
    if unknown:
        return UNKNOWN
    print(f"{len(pinned)} packages looked up, none with a known vulnerability")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
