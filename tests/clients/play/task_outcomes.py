"""A callback of ansible that writes what each task came to, as `client_outcomes.py` does for pytest."""

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: task_outcomes
type: stdout
short_description: A line of JSON for each task
description: Writes the outcome of each task to the file named by CLIENT_OUTCOMES, and what went wrong to the output.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "task_outcomes"

    def write(self, **fields):
        with open(os.environ["CLIENT_OUTCOMES"], "a", encoding="utf-8") as lines:
            lines.write(json.dumps(fields) + "\n")

    def v2_playbook_on_task_start(self, task, is_conditional):
        self.write(id=task.get_name())

    def v2_runner_on_ok(self, result):
        self.write(id=result._task.get_name(), outcome="passed")

    def v2_runner_on_skipped(self, result):
        self.write(id=result._task.get_name(), outcome="skipped")

    def v2_runner_on_unreachable(self, result):
        self.v2_runner_on_failed(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._display.display(self._dump_results(result._result))
        self.write(id=result._task.get_name(), outcome="failed")

    def v2_playbook_on_stats(self, stats):
        self.write(end="")
