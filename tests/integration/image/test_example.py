# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The example that extends an image with a model's weights, built with the tiny model.

On the base image of the simulation: what the example adds does not depend on what it is added to.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.models.images import Image

REPOSITORY = Path(__file__).resolve().parents[3]
EXAMPLE = REPOSITORY / "examples" / "image-with-weights" / "Dockerfile"
ASSETS = REPOSITORY / ".cache"
BASE, TAG = "sparkfleet/base:bookworm", "sparkfleet/example-test"


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    if not client.images.list(name=BASE):
        with (ASSETS / "base-bookworm.tar").open("rb") as file:
            client.images.load(file)
    yield client
    for image in client.images.list(name=TAG):
        client.images.remove(image.id, force=True)
    client.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a copy of the tiny model's directory."""
    return Path(shutil.copytree(ASSETS / "tiny-model", tmp_path / "model"))


def build(engine: docker.DockerClient, model: Path) -> Image:
    shutil.copy(EXAMPLE, model.parent / "Dockerfile")
    image, _log = engine.images.build(
        path=str(model), dockerfile=str(model.parent / "Dockerfile"), buildargs={"BASE": BASE}, tag=TAG, rm=True
    )
    return image


def files(engine: docker.DockerClient, image: Image) -> dict[str, str]:
    """Return name and hash of the files that an image serves."""
    container = engine.containers.create(image.id, command=["true"])
    try:
        chunks, _status = container.get_archive("/models/served")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
            found = {Path(one.name).name: tar.extractfile(one) for one in tar.getmembers() if one.isfile()}
            return {name: hashlib.sha256(file.read()).hexdigest() for name, file in found.items() if file}
    finally:
        container.remove()


def test_the_image_holds_the_model_and_serves_it(engine: docker.DockerClient, model: Path) -> None:
    image = build(engine, model)
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.iterdir()}
    assert files(engine, image) == expected
    assert "MODEL=/models/served" in image.attrs["Config"]["Env"]


def test_a_changed_tokenizer_does_not_ship_the_weights_again(engine: docker.DockerClient, model: Path) -> None:
    before = build(engine, model).attrs["RootFS"]["Layers"]
    (model / "tokenizer_config.json").write_text("{}")
    after = build(engine, model).attrs["RootFS"]["Layers"]
    assert len(before) == len(after)
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]
