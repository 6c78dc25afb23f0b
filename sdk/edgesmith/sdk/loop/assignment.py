"""The linear assignment problem, exactly, in numpy.

Shortest augmenting paths (Jonker and Volgenant, 1987, in the row-by-row form of Crouse, 2016): each
row is added by a Dijkstra search over the columns in reduced costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
Indices = NDArray[np.intp]


def assign(costs: Costs, limit: float) -> tuple[Indices, Indices]:
    """Pairs of rows and columns, none twice, that minimise the sum of ``cost - limit``.

    A pair that costs ``limit`` or more is never made: its row and column stay alone.

    Args:
        costs: ``(n, m)``, finite, any sign.
        limit: what a row that stays alone costs.

    Returns:
        The rows, rising, and the column of each.
    """
    possible = costs < limit
    rows, columns = np.nonzero(possible)
    # A pair whose row and column have no other candidate is certain; the rest is searched.
    lonely = (possible.sum(1)[rows] == 1) & (possible.sum(0)[columns] == 1)
    certain = rows[lonely], columns[lonely]
    open_rows = np.setdiff1d(rows, certain[0])
    open_columns = np.setdiff1d(columns, certain[1])
    if len(open_rows):
        part = np.minimum(costs[np.ix_(open_rows, open_columns)], limit)
        found = _augment(part, limit)
        made = found < len(open_columns)
        pairs = open_rows[made], open_columns[found[made]]
        # A pair at the limit is as good as none.
        made = possible[pairs]
        certain = np.append(certain[0], pairs[0][made]), np.append(certain[1], pairs[1][made])
    order = np.argsort(certain[0], kind="stable")
    return certain[0][order], certain[1][order]


def _augment(costs: Costs, limit: float) -> Indices:
    """The column of each row; columns from ``m`` on stand for staying alone at the cost ``limit``."""
    n, m = costs.shape
    wide = np.concatenate([costs, np.full((n, n), limit)], axis=1)
    row_price, column_price = np.zeros(n), np.zeros(m + n)
    row_of = np.full(m + n, -1, np.intp)
    column_of = np.full(n, -1, np.intp)
    for start in range(n):
        distance = np.full(m + n, np.inf)
        before = np.full(m + n, -1, np.intp)  # the row through which a column is reached
        settled = np.zeros(m + n, np.bool_)
        visited = [start]
        row, reached = start, 0.0
        while True:
            through = reached + wide[row] - row_price[row] - column_price
            better = ~settled & (through < distance)
            distance[better] = through[better]
            before[better] = row
            column = int(np.argmin(np.where(settled, np.inf, distance)))
            reached = float(distance[column])
            settled[column] = True
            if row_of[column] < 0:
                break
            row = int(row_of[column])
            visited.append(row)
        row_price[start] += reached
        for other in visited[1:]:
            row_price[other] += reached - distance[column_of[other]]
        column_price[settled] -= reached - distance[settled]
        while True:
            row = int(before[column])
            row_of[column] = row
            column_of[row], column = column, int(column_of[row])
            if row == start:
                break
    return column_of
