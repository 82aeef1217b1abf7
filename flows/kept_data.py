"""Whether DVC still has what a model was made of: in the remote, or without one in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.provenance import Known, named


def kept_data(workspace: Path, lock: Mapping[str, Any]) -> Known:
    """Look for every output that entries of `dvc.lock` name, file by file.

    Unknown where nothing is named, or where the folder is no DVC project.
    """
    outputs = {str(out["path"]): str(out["md5"]) for entry in lock.values() for out in entry.get("outs", ())}
    if not outputs:
        return Known("unknown", "nothing is known of its data")
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        repo = Repo(str(workspace))
    except NotDvcRepoError:
        return Known("unknown", f"{workspace} is no DVC project")
    with repo:
        cache = repo.cache.local
        remote = _remote(repo)
        where = "DVC's cache" if remote is None else f"the remote {remote.path}"
        missing = [path for path, md5 in outputs.items() if not _all_there(md5, remote or cache, cache)]
    if not missing:
        return Known("yes", f"{len(outputs)} outputs are in {where}")
    remedy = "run `dvc repro`, or configure a remote and run `dvc pull`" if remote is None else "run `dvc push`"
    return Known("no", f"{named(missing)} of it are not in {where}; {remedy}")


def _remote(repo: Any) -> Any:
    from dvc.config import NoRemoteError

    try:
        return repo.cloud.get_remote_odb()
    except NoRemoteError:
        return None


def _all_there(md5: str, store: Any, cache: Any) -> bool:
    """Whether a store has a file, or a folder's list and all files on it."""
    wanted = [md5]
    if md5.endswith(".dir"):
        listed = _files_of(md5, cache)
        if listed is None:
            listed = _files_of(md5, store)
        if listed is None:
            return False
        wanted += listed
    return not set(wanted) - set(_existing(wanted, store))


def _files_of(md5: str, store: Any) -> list[str] | None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree
    from dvc_objects.errors import ObjectFormatError

    try:
        tree = Tree.load(store, HashInfo("md5", md5))
    except (OSError, ObjectFormatError):
        return None
    return [str(found.value) for _, _, found in tree if found is not None]


def _existing(wanted: Iterable[str], store: Any) -> list[str]:
    return [str(oid) for oid in store.oids_exist(list(dict.fromkeys(wanted)))]
