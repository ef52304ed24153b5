"""Equal lines of the log are bounded per reason."""

import structlog

from mirror.throttled_log import ThrottledLog


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_flood_is_a_few_lines():
    """Ten at once, then one a second that says how many were left out; other reasons have lines of their own."""
    clock = Clock()
    with structlog.testing.capture_logs() as log:
        told = ThrottledLog(structlog.get_logger(), clock)
        for number in range(1000):
            told.log("info", "refused", "network", client=number)
        assert [event["client"] for event in log] == list(range(10))
        told.log("warning", "refused", "requests", client="other")
        assert (log[-1]["client"], log[-1]["log_level"]) == ("other", "warning")
        clock.now += 1.0
        told.log("info", "refused", "network", client="later")
        assert (log[-1]["client"], log[-1]["left_out"]) == ("later", 990)
        told.log("info", "refused", "network", client="too soon")
        assert log[-1]["client"] == "later"
        clock.now += 3600.0
        for number in range(20):
            told.log("info", "refused", "network", client=number)
    assert len(log) == 12 + 10
    assert log[12]["left_out"] == 1
    assert "left_out" not in log[13]
