"""95 % intervals of a share, and of the difference of two, for columns of counts.

A share of k in n has Wilson's score interval (E. B. Wilson, JASA 22, 1927), which Brown, Cai and DasGupta (Statistical Science
16(2), 2001) recommend for small n too: it never leaves [0, 1] and is not empty at k = 0.  A difference has Newcombe's hybrid of
two such intervals (R. G. Newcombe, Statistics in Medicine 17, 1998, method 10).
"""

from __future__ import annotations

import polars as pl

#: The 97.5 % point of the normal distribution.
Z = 1.959963984540054


def wilson(k: pl.Expr, n: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """The limits for k of n; null where n is 0."""
    k, n = k.cast(pl.Float64), n.cast(pl.Float64)  # counts are whole numbers of 32 bits, whose products are not
    p = k / n
    middle = p + Z * Z / (2 * n)
    half = Z * (p * (1 - p) / n + Z * Z / (4 * n * n)).sqrt()
    scale = 1 + Z * Z / n
    low = pl.when(k > 0).then((middle - half) / scale).otherwise(0.0)  # exactly, whatever rounding says
    high = pl.when(k < n).then((middle + half) / scale).otherwise(1.0)
    some = pl.when(n > 0)
    return some.then(low), some.then(high)


def newcombe(k1: pl.Expr, n1: pl.Expr, k2: pl.Expr, n2: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """The limits for k1/n1 - k2/n2; null where either n is 0."""
    p1, p2 = k1 / n1, k2 / n2
    (low1, high1), (low2, high2) = wilson(k1, n1), wilson(k2, n2)
    down = ((p1 - low1).pow(2) + (high2 - p2).pow(2)).sqrt()
    up = ((high1 - p1).pow(2) + (p2 - low2).pow(2)).sqrt()
    some = pl.when((n1 > 0) & (n2 > 0))
    return some.then((p1 - p2 - down).clip(-1.0, 1.0)), some.then((p1 - p2 + up).clip(-1.0, 1.0))
