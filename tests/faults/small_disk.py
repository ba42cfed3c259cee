"""A small file system under one day of the ledger, that can be filled up and emptied again."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import psycopg

SIZE_MIB = 64


class SmallDisk:
    """A tmpfs with a tablespace on it."""

    def __init__(self, folder: Path, database: psycopg.Connection[Any], name: str) -> None:
        self._folder = folder
        self._database = database
        self._name = name

    def move(self, day: date) -> None:
        """Put a day's partition of the ledger, and its indexes, on the small disk."""
        table = f"usage_events_{day:%Y%m%d}"
        self._database.execute(f"ALTER TABLE {table} SET TABLESPACE {self._name}")
        indexes = self._database.execute(
            "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = %s::regclass", (table,)
        ).fetchall()
        for (index,) in indexes:
            self._database.execute(f"ALTER INDEX {index} SET TABLESPACE {self._name}")

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nothing more fits on it inside."""
        filler = self._folder / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            yield
        finally:
            filler.unlink(missing_ok=True)


@contextmanager
def mounted(folder: Path, database: psycopg.Connection[Any], name: str) -> Iterator[SmallDisk | None]:
    """A small disk for a database's server on this machine; None where it may not be mounted (only root may)."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(folder):  # of a run that was killed
        subprocess.run(["umount", "-l", str(folder)], check=True)
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=777", "tmpfs", str(folder)], check=False
        ).returncode
    ):
        yield None
        return
    try:
        place = folder / "space"
        place.mkdir()
        row = database.execute("SELECT setting FROM pg_settings WHERE name = 'data_directory'").fetchone()
        assert row is not None
        owner = Path(row[0]).stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        database.execute(f"CREATE TABLESPACE {name} LOCATION '{place}'")
        database.execute(f"GRANT CREATE ON TABLESPACE {name} TO PUBLIC")
        yield SmallDisk(folder, database, name)
    finally:
        for _ in range(50):  # the server may keep a file open for a moment
            if (
                subprocess.run(["umount", str(folder)], check=False, stderr=subprocess.DEVNULL).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()
