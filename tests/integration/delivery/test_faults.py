# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong during a delivery is one line, and the image that was there stays and serves."""

from __future__ import annotations

import pytest

from tests.integration.delivery.lab import ADDRESSES, IMAGE, PORT, SIZE, UNIT, Lab
from tests.integration.fleets import skipped_without, until

pytestmark = skipped_without()

SLOW = "200mbit"
"""Slow enough for something to happen while the image is on its way."""
STAYS = "what was here stays"
STORES = {"registry": "/var/lib/sparkfleet/image/registry/", "stream": "/var/lib/sparkfleet/image/stream"}


@pytest.mark.parametrize("delivery", ["registry", "stream"])
def test_a_sender_that_is_killed_goes_on_where_it_was(lab: Lab, delivery: str) -> None:
    with lab.limited(SLOW):
        began = lab.received(lab.worker)
        run = lab.start(image_delivery=delivery)
        lab.middle(began, 0.3, SIZE)
        lab.head.run(f"systemctl kill --signal KILL {UNIT}")
        lab.end(run).assert_fine()
    assert lab.content(lab.worker) == lab.content(lab.head)
    assert lab.received(lab.worker) - began < SIZE * 1.05
    lab.assert_tidy()


def test_two_runs_at_once_are_one(lab: Lab) -> None:
    with lab.limited(SLOW):
        began = lab.received(lab.worker)
        run = lab.start()
        lab.middle(began, 0.1, SIZE)
        second = lab.deliver()
        assert second.returncode != 0 and set(second.changed.values()) == {0}
        assert all("another run" in reason for reason in second.reasons), second.output
        lab.end(run).assert_fine()
    assert lab.content(lab.worker) == lab.content(lab.head)


@pytest.mark.parametrize("delivery", ["registry", "stream"])
def test_a_receiver_that_breaks_off_does_not_start_again(lab: Lab, delivery: str) -> None:
    part = {
        "registry": "docker images --quiet --filter label=io.sparkfleet.build=step | grep .",
        "stream": f"test $(du --bytes --summarize /var/lib/sparkfleet/image/incoming | cut -f1) -gt {SIZE // 2}",
    }[delivery]
    lab.build_old(lab.worker)
    with lab.serving(), lab.limited(SLOW):
        run = lab.start(image_delivery=delivery)
        until(lambda: lab.worker.holds(part), "a part that need not be sent again")
        if delivery == "registry":
            lab.worker.run("systemctl reset-failed docker; kill -KILL $(pidof dockerd)")
        else:
            # Both of its processes at once: one that sees the other end takes that for a broken link, and tries again.
            lab.worker.run("both=$(pidof rsync); kill -STOP $both; kill -KILL $both")
        lab.end(run).assert_refused(STAYS)
        until(lambda: lab.worker.holds("docker version"), "Docker")
        if delivery == "registry":
            lab.worker.run("docker start old")  # killed with Docker, which is no doing of ours
        assert lab.content(lab.worker) != lab.content(lab.head)
    began = lab.received(lab.worker)
    lab.delivered(image_delivery=delivery)
    assert lab.received(lab.worker) - began < SIZE * 0.8


@pytest.mark.parametrize("delivery", ["registry", "stream"])
def test_a_corrupted_layer_is_refused_and_made_anew(lab: Lab, delivery: str) -> None:
    lab.delivered(image_delivery=delivery)
    lab.clear(lab.worker)
    lab.build_old(lab.worker)
    # Files of whole layers, of the same size and with other bytes.
    lab.head.run(
        f"find {STORES[delivery]} -type f -size +10M | "
        "while read -r file; do printf rotten | dd of=$file bs=1 seek=5000000 conv=notrunc status=none; done"
    )
    with lab.serving() as old:
        lab.deliver(image_delivery=delivery).assert_refused(f"{STAYS}; the source makes its copy anew")
        assert lab.worker.run(f"docker image inspect --format '{{{{.Id}}}}' {IMAGE}") == old
        lab.delivered(image_delivery=delivery)


def test_a_full_disk_is_one_line(lab: Lab) -> None:
    lab.build_old(lab.worker)
    mount = "mount -t tmpfs -o size=10m tmpfs /var/lib/docker/tmp"
    with lab.serving() as old, lab.worker.broken(mount, "umount /var/lib/docker/tmp"):
        lab.deliver().assert_refused(f"no space left on device.*{STAYS}; make room where Docker keeps images")
        assert lab.worker.run(f"docker image inspect --format '{{{{.Id}}}}' {IMAGE}") == old
    lab.delivered()


def test_a_port_that_is_taken_is_one_line(lab: Lab) -> None:
    with lab.head.listening(PORT):
        where = ADDRESSES["spark-01"]
        lab.deliver().assert_refused(f"port {PORT} of (127.0.0.1|{where}) is taken; .* set image_share_port")


def test_an_engine_that_is_away_is_one_line(lab: Lab) -> None:
    with lab.worker.without_engine():
        lab.deliver().assert_refused("Docker|docker")
