# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.sparkfleet.vllm.plugins.plugin_utils import _digests


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, memory = tmp_path / "wheel", str(tmp_path / "cache" / "digests.json")
    file.write_text("one")
    read: list[str] = []

    def digest(path: str) -> str:
        read.append(path)
        return Path(path).read_text()

    monkeypatch.setattr(_digests, "file_sha256", digest)
    for _turn in range(2):
        with _digests.Digests(memory) as digests:
            assert digests.of(str(file)) == "one"
    assert len(read) == 1
    file.write_text("two!")
    with _digests.Digests(memory) as digests:
        assert digests.of(str(file)) == "two!"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_broken_memory_is_forgotten(tmp_path: Path, content: str) -> None:
    memory, file = tmp_path / "digests.json", tmp_path / "wheel"
    memory.write_text(content.replace('"x"', f'"{file}"'))
    file.write_bytes(b"")
    with _digests.Digests(str(memory)) as digests:
        assert digests.of(str(file)).startswith("e3b0c442")
