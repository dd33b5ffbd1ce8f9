"""Figures of timed answers."""

import warnings

from hispec.calibration.recording import LevelSpec
from hispec.calibration.search import PLAIN, Configuration
from hispec.calibration.timing import TimedAnswer, Timings


def test_intervals_hold_where_few_prompts_were_answered_again():
    other = Configuration((LevelSpec("m", 1),), (4,))
    timings = Timings([PLAIN, other])
    for one, speed in ((0, 10.0), (1, 20.0)):
        for prompt in range(8):
            timings.answers.append(TimedAnswer(one, prompt, 0, 10 + prompt, (10 + prompt) / speed, 0))
        timings.answers.append(TimedAnswer(one, 0, 1, 10, 10 / speed, 0))  # half of all draws of repeats are this one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = timings.speed(1).ci95
        assert 19.9 < low <= high < 20.1
        assert 1.9 < timings.ratio(1, 0).ci95[0] < 2.1
        assert not timings.may_be_as_fast(0, 1)
