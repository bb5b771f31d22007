"""The rule by which a picture is live, delayed or stale."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.streamer.config import StreamerSection
from services.streamer.freshness import Freshness, Limits, State


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(0.0, State.LIVE), (0.999, State.LIVE), (1.0, State.DELAYED), (2.999, State.DELAYED), (3.0, State.STALE)],
)
def test_a_picture_is_live_delayed_or_stale_by_its_age(age_s: float, state: State) -> None:
    assert Limits(1.0, 3.0).judge(age_s) is state
    assert Freshness(state, "", age_s).served is (state is not State.STALE)


def test_the_limits_come_from_the_configuration() -> None:
    assert StreamerSection().limits == Limits(1.0, 3.0)
    assert StreamerSection(delayed_after_s=5.0, stale_after_s=60.0).limits == Limits(5.0, 60.0)
    # A shorter limit from a configuration of an older version needs no second setting.
    assert StreamerSection(stale_after_s=0.5).limits == Limits(0.5, 0.5)
    with pytest.raises(ValidationError, match="delayed_after_s 5 is more than stale_after_s 2"):
        StreamerSection(delayed_after_s=5.0, stale_after_s=2.0)
