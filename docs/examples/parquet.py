"""Write a table as encrypted Parquet, and read back two columns of it by name.

Only the parts of the file that hold these columns are fetched. Needs the extra [fsspec], pandas and
pyarrow.

    parquet.py sfs://tables/sales.parquet
"""

from __future__ import annotations

import sys

import pandas


def main(url: str) -> None:
    table = pandas.DataFrame(
        {"day": ["mon", "tue", "wed"], "sold": [3, 5, 8], "note": ["", "rain", ""]}
    )
    table.to_parquet(url)
    found = pandas.read_parquet(url, columns=["day", "sold"])
    print(found.to_string(index=False))
    print("sum", found["sold"].sum())


if __name__ == "__main__":
    main(sys.argv[1])
