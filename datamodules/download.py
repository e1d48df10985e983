"""Files from the places that publish them: several mirrors, resumed where a connection broke, checked by their hash."""

import hashlib
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from filelock import FileLock

BLOCK, TIMEOUT, ATTEMPTS = 1 << 20, 30, 3


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Put the file with this `md5` at `path`, from the first of `urls` that has it; nothing to do where it lies there.

    What has come is kept as `path.part`, and the next attempt, or the next call, asks for the rest. Raises
    FileNotFoundError that says what was tried and where a file fetched by hand has to be placed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, tried = path.with_name(f"{path.name}.part"), []
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return
        for url in urls:
            for _ in range(ATTEMPTS):
                try:
                    _get(url, part)
                except (OSError, HTTPException) as error:
                    tried.append(f"{url} ({' '.join(str(error).split()) or type(error).__name__})")
                    continue
                if digest(part) == md5:
                    part.replace(path)
                    return
                part.unlink()  # an error page, or a mirror that holds another version
                tried.append(f"{url} (its content is not the published one)")
                break
    raise FileNotFoundError(
        f"{path.name} could not be downloaded: {'; '.join(dict.fromkeys(tried))}. Without a network, get it elsewhere "
        f"(md5 {md5}) and place it at {path.absolute()}."
    )


def _get(url: str, part: Path) -> None:
    """Append to `part` what is missing of it; raises OSError where the connection ends early."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            resumed = answer.status == 206
            expected = int(answer.headers.get("Content-Length") or 0)
            with open(part, "ab" if resumed else "wb") as file:
                before = file.tell()
                while block := answer.read(BLOCK):
                    file.write(block)
                if expected and file.tell() - before < expected:
                    raise OSError(f"the connection ended {expected - (file.tell() - before)} bytes early")
    except HTTPError as error:
        if error.code != 416:  # nothing beyond what is there: complete, if the hash says so
            raise


def digest(path: Path) -> str:
    """md5 of a file: against transmission errors, and to tell versions apart."""
    found = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()
