# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image comes to the other node, whole at first and then only what changed."""

from __future__ import annotations

import pytest

from tests.integration.delivery.lab import SIZE, TOP_BYTES, Lab
from tests.integration.fleets import skipped_without

pytestmark = skipped_without()

OVERHEAD = 1.02
"""Frames, requests and answers around the bytes of layers."""
LITTLE = 100_000
"""Bytes that Ansible's own connections, which are not on the fabric, and ARP would never need."""


@pytest.mark.parametrize("delivery", ["registry", "stream"])
def test_first_whole_then_what_changed_then_nothing(lab: Lab, delivery: str) -> None:
    assert lab.delivered(image_delivery=delivery) < SIZE * OVERHEAD
    lab.build()
    assert lab.delivered(image_delivery=delivery) < TOP_BYTES * OVERHEAD + LITTLE
    before = lab.received(lab.worker)
    run = lab.deliver(image_delivery=delivery)
    run.assert_fine()
    assert set(run.changed.values()) == {0}
    assert lab.received(lab.worker) - before < LITTLE


@pytest.mark.parametrize("delivery", ["registry", "stream"])
def test_a_worker_with_the_containerd_store_gets_the_same_content(lab: Lab, delivery: str) -> None:
    with lab.containerd(lab.worker):
        lab.delivered(image_delivery=delivery)
        lab.build()
        assert lab.delivered(image_delivery=delivery) < TOP_BYTES * OVERHEAD + LITTLE


@pytest.mark.parametrize("delivery", ["registry", "stream"])
def test_a_head_with_the_containerd_store_hands_out(lab: Lab, delivery: str) -> None:
    with lab.containerd(lab.head):
        lab.build(fresh=True)
        lab.delivered(image_delivery=delivery)
        assert set(lab.deliver(image_delivery=delivery).changed.values()) == {0}
    lab.build(fresh=True)


def test_an_id_that_one_node_has_is_handed_on(lab: Lab) -> None:
    image = lab.build()
    lab.deliver(image_ref=image).assert_fine()
    # The head loses it, and gets it back from the node that has it now.
    lab.head.run(f"docker image rm --force {image}")
    lab.deliver(image_ref=image).assert_fine()
    assert set(lab.deliver(image_ref=image).changed.values()) == {0}
    lab.build()


def test_an_image_that_nobody_has_is_refused(lab: Lab) -> None:
    nowhere = "sha256:" + "1" * 64
    run = lab.deliver(image_ref=nowhere)
    assert run.returncode != 0
    assert [line.split(" is not on the node")[0] for line in run.reasons[0].splitlines()] == [
        f"spark-01: image_ref {nowhere}",
        f"spark-02: image_ref {nowhere}",
    ]


def test_old_images_go_but_none_in_use(lab: Lab) -> None:
    lab.delivered()
    with lab.serving() as oldest:
        images = []
        for _turn in range(2):
            images.append(lab.build())
            lab.delivered(image_keep=1)
        kept = lab.worker.run("docker images --all --quiet --no-trunc").splitlines()
        # The one in use counts as the one to go back to.
        assert set(kept) == {oldest, images[-1]}
    lab.build()
    lab.delivered(image_keep=1)
    assert len(lab.worker.run("docker images --all --quiet --no-trunc").splitlines()) == 2
    # So does the registry: what only older images had is gone from its disk.
    tags = lab.head.run("ls /var/lib/sparkfleet/image/registry/docker/registry/v2/repositories/*/*/_manifests/tags")
    assert len({tag.split("-")[1].split(".")[0] for tag in tags.split()}) == 2
