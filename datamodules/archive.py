"""A folder out of a tar or zip archive: unpacked once, safely, and found again."""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

from adversarial_lightning.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")


def unpacked(archive: Path) -> Path:
    """The folder with the archive's content, unpacked on first use.

    It lies beside the archive or, where nothing can be written, in the user's cache folder, under a name made of the
    archive's size and time, so that a replaced archive is unpacked anew. Raises ValueError for a file that is not a
    whole archive, or that holds members outside its own folder (absolute paths, `..`, links to elsewhere, devices).
    """
    facts = archive.stat()
    key = f"{facts.st_size}-{facts.st_mtime_ns}"
    where = hashlib.sha256(str(archive.absolute()).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adversarial-lightning"
    targets = [archive.parent / f"{archive.name}.{key}", cache / f"{archive.name}.{where}.{key}"]
    for target in targets:
        if target.is_dir():
            return target
    failure: OSError | None = None
    for target in targets:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", dir=target.parent))
        except OSError as error:  # a read-only place, which os.access() does not always know
            failure = error
            continue
        try:
            _extract(archive, temporary)
            return _publish(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise failure or OSError(f"no place to unpack {archive}")


def _extract(archive: Path, folder: Path) -> None:
    if archive.suffix == ".zip":
        try:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)  # takes absolute paths and `..` out of names, and makes no links
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise UserError(f"{archive} is not a whole zip archive ({error}): get it again.") from error
        return
    if not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive} cannot be unpacked safely by this Python: use 3.10.12, 3.11.4 or newer.")
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}. Get it from a source you trust.") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is not a whole tar archive ({error}): get it again.") from error


def _publish(temporary: Path, target: Path) -> Path:
    """Give the finished folder its name in one step: nobody ever sees half of it."""
    os.chmod(temporary, 0o755)  # mkdtemp's 0700 would lock out the other users of a common data folder
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same content
            raise
    return target
