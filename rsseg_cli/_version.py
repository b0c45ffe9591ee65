"""The version, where every package may import it from."""

__version__ = "0.2.0"


def source_commit() -> str:
    """Return the commit that this was installed from, 12 digits, with `+` after changes; empty if unknown.

    A checkout asks git; a build keeps the answer in `commit.txt`.
    """
    import subprocess
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return described.stdout.strip()
    kept = Path(__file__).with_name("commit.txt")
    return kept.read_text(encoding="utf-8") if kept.exists() else ""
