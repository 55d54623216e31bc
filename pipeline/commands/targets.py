"""What the targets of a teacher's records are, for the user."""

from cache.records import TEACHER, TRANSCRIPT


def target_counts(counts: dict[str, int]) -> str:
    """Says how many utterances have which targets. counts: by the values of `target_source`."""
    return f"{counts[TRANSCRIPT]:,} transcripts, {counts[TEACHER]:,} of the teacher's own words"
