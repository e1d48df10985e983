"""Unpacking of tar and zip archives: once, safely, into a folder that is found again."""

import gzip
import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from adversarial_lightning.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
MEMBERS = 5_000_000  # ImageNet has 1.4 million files
BROKEN = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error)


def unpacked(archive: Path) -> Path:
    """Folder with the archive's content, unpacked on first use.

    It lies beside the archive or, if that place is read-only, in the user's cache folder. Its name contains the
    archive's size and time, so that a replaced archive is unpacked anew. Raises ValueError for a file that is not a
    whole archive, for members outside the archive's own folder (absolute paths, `..`, links to elsewhere, devices), and
    for an archive that unpacks to more than the free space of the disk or to more than `MEMBERS` files. Tar archives
    need Python 3.10.12, 3.11.4 or newer (`tarfile.data_filter`).
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
    tar = archive.suffix != ".zip"
    if tar and not hasattr(tarfile, "data_filter"):
        raise UserError(f"{archive} cannot be unpacked safely by this Python: use 3.10.12, 3.11.4 or newer.")
    left = Allowance(archive, shutil.disk_usage(folder).free, MEMBERS)
    try:
        if tar:
            with tarfile.open(archive) as tape:
                tape.extractall(folder, filter=left.data_filter)
        else:
            with zipfile.ZipFile(archive) as packed:
                for member in packed.infolist():
                    left.take(member.file_size)
                packed.extractall(folder)  # takes absolute paths and `..` out of names, and makes no links
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}. Get it from a source you trust.") from error
    except BROKEN as error:
        kind = "tar" if tar else "zip"
        raise UserError(f"{archive} is not a whole {kind} archive ({error}): get it again.") from error


@dataclass
class Allowance:
    """Limit on what an archive may unpack to: so many bytes, and so many members."""

    archive: Path
    free: int
    members: int

    def take(self, size: int) -> None:
        """Count one member of `size` bytes. Raises ValueError beyond the limit, before it is written."""
        self.free -= size
        self.members -= 1
        if self.free < 0:
            raise UserError(f"{self.archive} unpacks to more than its disk has left: free space there.")
        if self.members < 0:
            raise UserError(f"{self.archive} holds more than {MEMBERS:,} files: unpack it yourself if you trust it.")

    def data_filter(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        """Python's filter for data (no absolute paths, no `..`, no links to elsewhere, no devices), and `take`."""
        self.take(member.size)
        return tarfile.data_filter(member, folder)


def _publish(temporary: Path, target: Path) -> Path:
    """Rename the finished folder in one step, so that no process ever sees half of it."""
    os.chmod(temporary, 0o755)  # mkdtemp's 0700 would lock out the other users of a common data folder
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster, with the same content
            raise
    return target
