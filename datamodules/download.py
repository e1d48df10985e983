"""Downloads of published files: several mirrors, checked by their hash; pooch does the transfer."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pooch
from filelock import FileLock

TIMEOUT = 30  # seconds without an answer
ATTEMPTS = 3  # at each address, where the connection fails


def fetch(urls: Sequence[str], path: Path, md5: str) -> None:
    """Download the file with this `md5` to `path`, from the first of `urls` that has it; keep a file that is there.

    Of several processes one downloads. An interrupted download leaves nothing behind, and the next call starts anew.
    Raises FileNotFoundError that says which addresses were tried, and where to place a file that was fetched by hand.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tried = []
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.is_file():
            return
        pooch.get_logger().setLevel(logging.WARNING)
        for url in urls:
            for _ in range(ATTEMPTS):
                try:
                    pooch.retrieve(
                        url,
                        known_hash=f"md5:{md5}",
                        fname=path.name,
                        path=path.parent,
                        downloader=pooch.HTTPDownloader(timeout=TIMEOUT),
                    )
                    return
                except OSError as error:  # those of requests too
                    failure = " ".join(str(error).split()) or type(error).__name__
                except ValueError:  # an error page, a mirror that holds another version, or a transmission error
                    failure = "its content is not the published one"
                    break
            tried.append(f"{url} ({failure})")
    raise FileNotFoundError(
        f"{path.name} could not be downloaded: {'; '.join(tried)}. Without a network, get it elsewhere (md5 {md5}) and "
        f"place it at {path.absolute()}."
    )
