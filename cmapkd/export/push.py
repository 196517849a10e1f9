"""An export on the Hub: never by itself, only with an explicit yes, and with nobody's token in sight.

The token comes from where ``huggingface_hub`` looks for it (the environment's HF_TOKEN, or its own login); this module neither
takes, stores nor prints one, and takes it out of whatever an error says. A new repository is private.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from cmapkd.errors import UserError
from cmapkd.export.record import NOTES, verify

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


class Api(Protocol):
    """What is used of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: str, repo_type: str, commit_message: str, ignore_patterns: list[str]
    ) -> Any: ...


def check(repository: str, agreed: bool, public: bool = False) -> None:
    """Refuse before anything is made or sent.

    Args:
        repository: ``owner/name``.
        agreed: whether its user has said yes.

    Raises:
        UserError: no such name is possible, or nobody has agreed.
    """
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository or repository.endswith(".git"):
        reason = "is no name of a repository: owner/name, of letters, digits, `_`, `.` and `-`"
        raise UserError(key="--push", value=repository, reason=reason, fix="write it as owner/name")
    if not agreed:
        reason = f"would send weights, card and settings to the {'public' if public else 'private'} repository"
        raise UserError(key="--push", value=repository, reason=reason, fix="add --yes if you mean it")


def push(directory: Path, repository: str, *, agreed: bool, public: bool = False, api: Api | None = None) -> str:
    """Send an export to the Hub, after comparing it with its own record.

    Args:
        directory: of a whole export.
        api: stands in for the Hub in tests.

    Returns:
        What the Hub says of the new commit.

    Raises:
        UserError: nobody has agreed, the export is damaged, or the Hub refuses.
    """
    check(repository, agreed, public)
    record = verify(directory)
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    message = f"{record['experiment']}: {record['run']} ({record['metrics'][:12]})"
    try:
        api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=str(directory),
            repo_type="model",
            commit_message=message,
            ignore_patterns=list(NOTES),
        )
    except Exception as error:  # its own errors, those of the network, and of the file system
        reason = f"the Hub did not take it: {type(error).__name__}: {without_tokens(str(error))}"
        fix = "log in with `hf auth login` or set HF_TOKEN to one that may write there"
        # Without its cause: a traceback of it could show headers.
        raise UserError(key="--push", value=repository, reason=reason, fix=fix) from None
    return without_tokens(str(getattr(done, "commit_url", done)))


def without_tokens(text: str) -> str:
    """A text without the token that is in use, or anything that looks like one."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "(token)")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}|(?i:bearer)\s+\S+|(?<=://)[^/\s@]+@", "(token)", text)
