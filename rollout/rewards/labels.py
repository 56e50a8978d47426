"""What a reward can compare a response with."""


def scalar_problem(label: object, reward: str) -> str | None:
    """Return what keeps `label` from being compared with, in words, or None for a number or a text."""
    if isinstance(label, bool) or not isinstance(label, int | float | str) or label == "":
        return f"the reward {reward!r} needs a number or a text as label, not {label!r:.100}"
    return None
