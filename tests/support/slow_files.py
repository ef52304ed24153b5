"""A file whose disk does not answer until it is allowed to."""

import errno
import os
import threading
import time


class SlowFile:
    """Takes the place of a small file: whoever opens it waits for `release`. What it held can be read from then on.

    Attributes:
        opened: somebody waits for its content.
        gave_up: nobody has called `release` in time, and the content was handed out all the same.
    """

    def __init__(self, path, limit=10.0):
        self.opened, self.gave_up = threading.Event(), False
        self._path, self._limit, self._released = path, limit, threading.Event()
        self._kept = path.with_name(f"{path.name}.kept")
        path.rename(self._kept)
        os.mkfifo(path)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._released.set()
        self._thread.join()

    def release(self):
        self._released.set()

    def _run(self):
        content = self._kept.read_bytes()
        pipe = self._reader()
        self.opened.set()
        self.gave_up = not self._released.wait(self._limit)
        # Who opens it from here on finds the file itself.
        self._kept.replace(self._path)
        if pipe is not None:
            os.write(pipe, content)
            os.close(pipe)

    def _reader(self):
        """The writing end for the first reader; None if none comes before the release."""
        while not self._released.is_set():
            try:
                return os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            time.sleep(0.005)
        return None
