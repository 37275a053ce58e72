"""Objects with a state_dict, watched while they are used: what a load does not restore."""

from rules.cases import fires, near

import ckptool


class Counter:
    """Counts steps and saves them, under the name that `saved` is."""

    def __init__(self, saved: str, loaded: str) -> None:
        self.steps, self.saved, self.loaded = 0, saved, loaded

    def state_dict(self):
        return {self.saved: self.steps} if self.saved else {}

    def load_state_dict(self, state):
        if self.loaded:
            self.steps = state[self.loaded]


def watch_steps(saved: str, loaded: str):
    counter = Counter(saved, loaded)
    with ckptool.watch(counter) as watched:
        counter.steps += 1
    return watched.report


@fires("CK336")
def a_count_that_is_not_saved(tmp):
    return watch_steps("", "")


@near("CK336")
def a_count_that_is_saved(tmp):
    return watch_steps("steps", "steps")


@fires("CK337")
def a_state_under_another_name(tmp):
    return watch_steps("steps", "count")


@near("CK337")
def a_state_under_the_name_that_is_loaded(tmp):
    return watch_steps("count", "count")
