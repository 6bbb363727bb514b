"""A check for children of tests: it sleeps."""

import time


def sleeper():
    def sleep(seconds):
        time.sleep(seconds)
        return seconds

    return sleep
