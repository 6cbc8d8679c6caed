# Copyright (c) 2026, the sparkfleet.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bench_report
short_description: Keep what a benchmark of a model measured, and compare it with the last
version_added: "0.1.0"
description:
  - Writes three files, named C(CLUSTER-MODEL-TIME) - the record as JSON, tables in Markdown, and a plot as SVG. For the
    bench playbook, on the controller.
  - Compares with the newest record in O(directory) of the same cluster and model that asked for the same. Files that
    cannot be read, or are no such record, are named and passed over.
  - Failed requests, steps that came to no result, and what became slower are no failure of the module, but in
    RV(problems). Where no step was measured, nothing is written.
author:
  - sparkfleet.vllm authors (@sparkfleet)
attributes:
  check_mode:
    support: full
    description: Writes nothing.
  diff_mode:
    support: none
    description: Every record is a new file.
options:
  directory:
    description: The directory of the records, which is there.
    type: path
    required: true
  plan:
    description: What the filter P(sparkfleet.vllm.bench_plan#filter) returned for the model.
    type: dict
    required: true
  report:
    description: What C(sweep.py) wrote, as JSON text. Empty where it wrote nothing.
    type: str
    default: ""
  ended:
    description: How the client's container ended - C(status), C(said), or C(error).
    type: dict
    default: {}
  max_regression:
    description: By how many percent a figure may be worse than in the last run. Not given, by any.
    type: float
"""

EXAMPLES = r"""
- name: Keep what was measured
  sparkfleet.vllm.bench_report:
    directory: /srv/bench
    plan: "{{ plan }}"
    report: "{{ answer.content | b64decode }}"
    max_regression: 5
  delegate_to: localhost
  register: bench
"""

RETURN = r"""
record:
  description: What was measured, as it is written to the JSON file.
  returned: always
  type: dict
files:
  description: The files that were written, the record first.
  returned: always
  type: list
  elements: str
compared_with:
  description: The record that it was compared with, empty for none.
  returned: always
  type: str
text:
  description: The tables as lines for a person.
  returned: always
  type: list
  elements: str
problems:
  description: Failed requests, steps without a result, and figures worse than O(max_regression) allows, one line each.
  returned: always
  type: list
  elements: str
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.sparkfleet.vllm.plugins.module_utils import _bench_plot, _bench_report
from ansible_collections.sparkfleet.vllm.plugins.module_utils._files import write_atomically


def earlier(directory: str, record: Mapping[str, Any]) -> Iterator[tuple[str, str | OSError]]:
    """Yield the earlier records of the same model, newest first, or why one cannot be read."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in sorted((name for name in names if _bench_report.is_candidate(name, record)), reverse=True):
        try:
            with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as stream:
                yield name, stream.read()
        except OSError as error:
            yield name, error


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "plan": {"type": "dict", "required": True},
            "report": {"type": "str", "default": ""},
            "ended": {"type": "dict", "default": {}},
            "max_regression": {"type": "float"},
        },
        supports_check_mode=True,
    )
    p = module.params
    directory, limit = p["directory"], p["max_regression"]
    try:
        report = json.loads(p["report"] or "null")
    except ValueError:
        module.fail_json(msg=f"{p['plan']['name']}: the client's report is no JSON; run the bench again")
    record, problems = _bench_report.judge(p["plan"], report, p["ended"])
    result: dict[str, Any] = {"record": record, "files": [], "compared_with": "", "text": [], "problems": problems}
    if not record["steps"]:
        module.exit_json(changed=False, **result)
    try:
        filename, before, notes = _bench_report.last(record, earlier(directory, record))
        record["compared_with"] = filename
        base = os.path.join(directory, _bench_report.stem(record))
        picture = f"{os.path.basename(base)}.svg"
        contents = {
            f"{base}.json": json.dumps(record, indent=2) + "\n",
            f"{base}.md": _bench_report.markdown(record, filename, before, notes, picture),
            f"{base}.svg": _bench_plot.draw(record, before),
        }
        if not module.check_mode:
            for path, content in contents.items():
                write_atomically(path, content)
    except OSError as error:
        module.fail_json(msg=f"{directory}: the results cannot be kept ({error.strerror}); choose another bench_dir")
    if before is not None and limit is not None:
        worse = _bench_report.slower(_bench_report.changes(record, before), limit)
        if worse:
            what = f"{record['cluster']}: {record['model']}: slower than in {filename} by more than {limit:g} %"
            problems.append(f"{what}: {'; '.join(worse)}")
    result.update(
        files=list(contents), compared_with=filename, text=_bench_report.text(record, filename, before, notes)
    )
    module.exit_json(changed=not module.check_mode, **result)


if __name__ == "__main__":
    main()
