#!/usr/bin/env python3
"""Records ledgers of the program under test into ledgers/layout-N/, where they stay for good.

To be run once for each new layout: Tests/FaultTests/record_ledger.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import Lab
from recorded_ledger import SCENES, path_of, record


def main() -> None:
    for scene in SCENES:
        with tempfile.TemporaryDirectory(prefix="proxy-test-") as folder:
            lab = Lab(Path(folder))
            try:
                recording = record(lab, scene)
            finally:
                lab.close()
        path = path_of(recording.layout, scene)
        if path.exists():
            print(f"{path} is kept: later versions must read what is in it")
            continue
        recording.save(path)
        print(path)


if __name__ == "__main__":
    main()
