"""The version, where every package may import it from."""

__version__ = "0.2.0"


def source_commit() -> str:
    """Return the commit that this was installed from, 12 digits, with `+` after changes; empty if unknown.

    An installation from a repository keeps it (PEP 610); a checkout asks git.
    """
    import json
    import subprocess
    from importlib.metadata import PackageNotFoundError, distribution
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
        try:
            described = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return described.stdout.strip()
    try:
        source = json.loads(distribution("rsseg").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(source.get("vcs_info", {}).get("commit_id", ""))[:12]
