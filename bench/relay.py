"""A line between two network devices with delay and loss, for kernels without netem: `python -m bench.relay DELAY LOSS`.

Makes two TUN devices, prints their names, and carries packets between them until its parent ends. Each packet leaves DELAY
seconds after it came, in order, unless it is lost with probability LOSS. The devices vanish with this process, in whatever
network namespace they are.

Without loss a packet holds several segments, as network cards take them (segmentation offload): far less work, and TCP counts
bytes. With loss it is one segment, so that one that is lost is not a whole burst.
"""

import contextlib
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

from bench.process import die_with_parent

# linux/if_tun.h.
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
# The largest packet behind a struct virtio_net_hdr (linux/virtio_net.h).
PACKET_BYTES = 10 + 65535
# Read at once, so that neither direction keeps the other waiting.
BATCH = 64
NICE = -10


class Direction:
    """Packets on their way from one device to the other."""

    def __init__(self, source: int, target: int, delay: float, loss: float) -> None:
        self.source = source
        self._target = target
        self._delay = delay
        self._loss = loss
        self._random = random.Random(source)
        self._packets: deque[tuple[float, bytes]] = deque()

    def receive(self) -> None:
        """Take what has come."""
        due = time.monotonic() + self._delay
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                packet = os.read(self.source, PACKET_BYTES)
                if not self._loss or self._random.random() >= self._loss:
                    self._packets.append((due, packet))

    def send(self, now: float) -> float | None:
        """Send what is due; when the next packet is, if there is one."""
        packets = self._packets
        while packets and packets[0][0] <= now:
            # A device that is not up yet, or whose queue is full, loses it.
            with contextlib.suppress(OSError):
                os.write(self._target, packets.popleft()[1])
        return packets[0][0] if packets else None


def main() -> None:
    """Make the devices, tell their names, carry packets."""
    die_with_parent()
    # A late packet would be measured as a slow server.
    with contextlib.suppress(OSError):
        os.nice(NICE)
    delay, loss = float(sys.argv[1]), float(sys.argv[2])
    (near, near_name), (far, far_name) = _device(loss == 0), _device(loss == 0)
    print(near_name, far_name, flush=True)
    directions = [Direction(near, far, delay, loss), Direction(far, near, delay, loss)]
    while True:
        now = time.monotonic()
        dues = [due for direction in directions if (due := direction.send(now)) is not None]
        readable, _, _ = select.select([near, far], [], [], max(0.0, min(dues) - now) if dues else None)
        for direction in directions:
            if direction.source in readable:
                direction.receive()


def _device(offloads: bool) -> tuple[int, str]:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = IFF_TUN | IFF_NO_PI | (IFF_VNET_HDR if offloads else 0)
    request = fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"bench%d", flags))
    if offloads:
        fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return descriptor, request[:16].rstrip(b"\0").decode()


if __name__ == "__main__":
    main()
