"""Service and posted periods: what a closed month said, and what later months learned of it.

posted(M) = S(M, w_M) + sum over earlier closed months C of [S(C, w_M) - S(C, w_before)]

S(C, w) are the lines of month C, by time of service, as of watermark w; w_M is the watermark at which M was
closed (of an open month, the point of knowledge of the report), w_before that of the month before M. Over all
months the posted sums are those of service, at the last point of knowledge.
"""

from collections.abc import Sequence
from datetime import date

import polars as pl

from metering.frames.frame import Frame


def posted_frame(frame: Frame) -> Frame:
    """The declaration of posted lines: those of `frame`, each with the month in which it was served."""
    return Frame(
        f"POSTED_{frame.name}",
        {"service_month": pl.Date, **frame.columns},
        key=("service_month", *frame.key),
        nullable=frame.nullable,
        laws=frame.laws,
    )


def posted(
    frame: Frame,
    own: tuple[date, pl.DataFrame],
    late: Sequence[tuple[date, pl.DataFrame, pl.DataFrame]] = (),
) -> pl.DataFrame:
    """Lines posted to a month: its own and, of each earlier month, what is known now less what was known before.

    `own` is (month, lines), `late` are (month, lines now, lines before), all of `frame`, whose amounts add up.
    Lines that did not change are left out. Key, with service_month, as in `posted_frame(frame)`.
    """
    parts = [_signed(own[1], own[0], 1)]
    for month, now, before in late:
        parts.append(_changed(frame, pl.concat([_signed(now, month, 1), _signed(before, month, -1)])))
    return posted_frame(frame).conform(
        pl.concat([part.select("service_month", *frame.columns) for part in parts])
    )


def _signed(lines: pl.DataFrame, month: date, sign: int) -> pl.DataFrame:
    return lines.with_columns(
        pl.lit(month).alias("service_month"), pl.lit(sign, dtype=pl.Int8).alias("_sign")
    )


def _changed(frame: Frame, lines: pl.DataFrame) -> pl.DataFrame:
    """Sums with their signs, by everything that is no amount; lines whose every amount is the same left out."""
    amounts = [name for name, dtype in frame.columns.items() if name not in frame.key and dtype.is_numeric()]
    flags = [name for name, dtype in frame.columns.items() if name not in frame.key and dtype == pl.Boolean]
    about = [name for name in frame.columns if name not in (*amounts, *flags)]
    taken_away = pl.col("_sign") < 0
    sums = lines.group_by("service_month", *about).agg(
        # an amount that is unknown on either side makes the change unknown
        *(
            pl.when(pl.col(name).is_not_null().all())
            .then(pl.col(name).filter(~taken_away).sum() - pl.col(name).filter(taken_away).sum())
            .cast(frame.columns[name])
            .alias(name)
            for name in amounts
        ),
        *(pl.col(name).filter(~taken_away).any().alias(name) for name in flags),
        pl.any_horizontal(
            pl.col(name).is_null().any() & pl.col(name).is_not_null().any() for name in amounts
        ).alias("_became_known_or_unknown"),
    )
    differs = (pl.col(name).fill_null(0) != 0 for name in amounts)
    return sums.filter(pl.any_horizontal("_became_known_or_unknown", *differs))
