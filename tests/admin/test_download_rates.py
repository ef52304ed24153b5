"""How fast downloads are said to proceed."""

from mirror.admin.download_rates import DownloadRates


class Download:
    received = 0


def test_rate_follows_what_arrives():
    """Unknown at first; then bytes a second, smoothed; a download that begins again is not negative."""
    rates, download = DownloadRates(), Download()
    assert rates.rate(download) is None
    rates.sample([download], 100.0)
    assert rates.rate(download) is None
    download.received = 5_000
    rates.sample([download], 100.1)
    assert rates.rate(download) is None, "too soon to tell"
    download.received = 20_000
    rates.sample([download], 102.0)
    assert rates.rate(download) == 10_000
    rates.sample([download], 103.0)
    assert 0 < rates.rate(download) < 10_000
    download.received = 0
    rates.sample([download], 104.0)
    assert rates.rate(download) >= 0


def test_ended_downloads_are_forgotten():
    """A download that is gone leaves nothing behind."""
    rates, download = DownloadRates(), Download()
    rates.sample([download], 1.0)
    assert len(rates._samples) == 1
    del download
    assert len(rates._samples) == 0
