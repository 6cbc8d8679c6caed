# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/variables.py: tables from argument specifications."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs import variables

SPECS = """
argument_specs:
  preflight:
    short_description: Judge
    options: &options
      ray_port: {type: int, default: 6379, description: The port.}
      ray_nodes:
        type: list
        elements: dict
        required: true
        description:
          - First V(one).
          - Then O(ray_port=1) and C(a|b) in <dir>.
        options:
          name: {type: str, required: true, description: A name.}
      ray_mode: {choices: ["", auto, "1"], default: "", description: How.}
      ray_path: {type: path, description: Where.}
  main:
    short_description: Start Ray.
    options: *options
"""
README = "# ray\n\n<!-- variables -->\nold\n<!-- /variables -->\nend\n"
TABLE = """\
| Variable | Type | Default | Meaning |
|---|---|---|---|
| `ray_port` | `int` | `6379` | The port. |
| `ray_nodes` | `list[dict]` | required | First `one`. Then `ray_port=1` and `a\\|b` in &lt;dir&gt;. |
| `ray_nodes[].name` | `str` | required | A name. |
| `ray_mode` | `str` | `""` | How. One of `""`, `auto`, `"1"`. |
| `ray_path` | `path` | `{{ ray_root }}/x` | Where. |"""


@pytest.fixture(name="checkout")
def fixture_checkout(tmp_path: Path) -> Path:
    for name, text in {
        "README.md": "top\n<!-- variables:all -->\n<!-- /variables:all -->\n",
        "roles/ray/README.md": README,
        "roles/ray/meta/argument_specs.yml": SPECS,
        "roles/ray/defaults/main.yml": '---\nray_port: 1\nray_path: "{{ ray_root }}/x"\n',
        "roles/host/README.md": README,
        "roles/host/meta/argument_specs.yml": "argument_specs: {main: {short_description: Look, options: {}}}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_table_is_written_between_the_markers(checkout: Path) -> None:
    assert variables.main([], checkout) == 0
    text = (checkout / "roles/ray/README.md").read_text(encoding="utf-8")
    assert text == f"# ray\n\n<!-- variables -->\n{TABLE}\n<!-- /variables -->\nend\n"


def test_the_top_readme_has_all_roles_in_the_order_of_the_run(checkout: Path) -> None:
    variables.main([], checkout)
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert text == (
        "top\n<!-- variables:all -->\n"
        "### host\n\nLook.\n\nThis role has no variables.\n\n"
        f"### ray\n\nStart Ray.\n\n{TABLE}\n"
        "<!-- /variables:all -->\n"
    )


def test_check_names_each_stale_file_and_writes_nothing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert variables.main(["--check"], checkout) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "roles/host/README.md",
        "roles/ray/README.md",
        "README.md",
    ]
    assert all("stale" in line for line in lines)
    assert (checkout / "roles/ray/README.md").read_text(encoding="utf-8") == README


def test_check_is_content_with_what_was_written_until_a_variable_changes(checkout: Path) -> None:
    variables.main([], checkout)
    assert variables.main(["--check"], checkout) == 0
    specs = checkout / "roles/ray/meta/argument_specs.yml"
    specs.write_text(specs.read_text(encoding="utf-8").replace("6379", "6380"), encoding="utf-8")
    assert variables.main(["--check"], checkout) == 1


@pytest.mark.parametrize(
    ("broken", "text", "expected"),
    [
        ("roles/ray/README.md", "# ray\n", "lacks the lines"),
        ("roles/ray/README.md", "<!-- variables -->\n", "lacks the lines"),
        ("roles/ray/README.md", None, "missing"),
        ("README.md", None, "missing"),
        ("roles/ray/meta/argument_specs.yml", None, "missing"),
        ("roles/ray/meta/argument_specs.yml", "a: [\n", "not YAML"),
        ("roles/ray/meta/argument_specs.yml", "- a\n", "a mapping is wanted"),
    ],
)
def test_what_is_missing_is_skipped_with_a_line_and_an_error_in_check(
    checkout: Path, capsys: pytest.CaptureFixture[str], broken: str, text: str | None, expected: str
) -> None:
    if text is None:
        (checkout / broken).unlink()
    else:
        (checkout / broken).write_text(text, encoding="utf-8")
    assert variables.main([], checkout) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{broken}: ") and expected in line and line.endswith("skipped")
    assert variables.main(["--check"], checkout) == 1
    # The other files were written all the same.
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{broken}: ") and expected in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("O(x) V(y=1) C(z)", "`x` `y=1` `z`"),
        ("E(HOME) RV(a.b) M(ansible.builtin.file)", "`HOME` `a.b` `ansible.builtin.file`"),
        (r"V(a\) b)", "`a) b`"),
        ("P(ansible.builtin.file#lookup)", "`ansible.builtin.file`"),
        ("B(bold) and I(it)", "**bold** and *it*"),
        ("L(the docs, u/v) U(u/v)", "[the docs](u/v) <u/v>"),
        ("C(a<b>) a<b>", "`a<b>` a&lt;b&gt;"),
        ("C(a`b)", "`` a`b ``"),
        ("FOO(x)", "FOO(x)"),
        ("two\n  lines", "two lines"),
    ],
)
def test_markup(text: str, expected: str) -> None:
    assert variables.markdown(text) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", "`auto`"),
        ("", '`""`'),
        ("24.0", '`"24.0"`'),
        ("true", '`"true"`'),
        (True, "`true`"),
        (60, "`60`"),
        (0.5, "`0.5`"),
        ([], "`[]`"),
        (["a", "b"], "`[a, b]`"),
        ({}, "`{}`"),
        ("{{ a }}/b", "`{{ a }}/b`"),
    ],
)
def test_values_read_as_yaml(given: object, expected: str) -> None:
    assert variables.value(given) == expected
