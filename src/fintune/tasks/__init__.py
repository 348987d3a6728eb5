"""What is learnt and measured: a task is data + prompts + labels + scoring + version + licence + citation, by name.

Enters: a recipe's ``TaskSection``. Leaves: ``LoadedTask``, whose splits are ``Example`` tuples, with its licence, hash
and a count of every row that was dropped. One module per family of tasks.
"""

from fintune.tasks.base import LoadedTask, Prompt, Task
from fintune.tasks.loading import load_task
from fintune.tasks.registry import get_task, list_tasks, register
from fintune.tasks.selection import select_rows

__all__ = ["LoadedTask", "Prompt", "Task", "get_task", "list_tasks", "load_task", "register", "select_rows"]
