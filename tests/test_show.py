"""Figures of scores say what was measured."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from vreid_course import show
from vreid_course.metrics import bootstrap


def test_bars_show_means_and_intervals_over_people():
    people = np.repeat(np.arange(5), 4)
    first = np.linspace(0.1, 0.9, 20)
    second = np.where(people < 3, first, np.nan)
    axes = plt.figure().add_subplot()
    show.bars(axes, {"first": first, "second": second}, people)
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([100 * np.nanmean(x) for x in (first, second)])
    for line, ap in zip(axes.lines, (first, second), strict=True):
        assert line.get_xdata() == pytest.approx(
            [100 * x for x in bootstrap(ap, people=people)[1:]]
        )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    plt.close()
