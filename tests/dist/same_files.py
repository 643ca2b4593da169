"""Two wheels hold the same files with the same bytes: run by `make test-dist`."""

import sys
import zipfile


def contents(path: str) -> dict[str, int]:
    with zipfile.ZipFile(path) as wheel:
        return {entry.filename: entry.CRC for entry in wheel.infolist()}


first, second = map(contents, sys.argv[1:])
different = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
if different:
    sys.exit(f"the wheel and the one built from the sdist differ in {', '.join(different)}")
print(f"{len(first)} files, the same in both")
