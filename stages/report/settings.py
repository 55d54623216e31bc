"""Settings of the report."""

from pydantic import Field

from stages.shared.settings import Settings


class ReportSettings(Settings):
    audio_minutes: float = Field(
        30,
        ge=0,
        description="recordings beside the page, of each test split; those whose systems differ most come first; "
        "a minute is about 1.3 MB; 0: none",
    )
