"""How the gate says no: a reason for programs, and a sentence for people that ends in what to change."""

from __future__ import annotations

from dataclasses import dataclass

from pruning_server.errors import InvalidArtifactError, Reason


@dataclass(frozen=True)
class Refusals:
    """The reasons that a kind of file gives to the troubles that every zip can have; `noun` is how to call the file."""

    noun: str
    not_a_zip: Reason
    truncated: Reason
    corrupt: Reason
    refused: Reason

    def is_not_a_zip(self, message: str) -> InvalidArtifactError:
        """The file is of another format."""
        return InvalidArtifactError(self.not_a_zip, message)

    def is_truncated(self, message: str) -> InvalidArtifactError:
        """The end of the file is missing."""
        return InvalidArtifactError(self.truncated, f"{message}; it was cut off while being written or copied")

    def is_corrupt(self, message: str) -> InvalidArtifactError:
        """The bytes contradict each other."""
        return InvalidArtifactError(self.corrupt, f"{message}; the file is damaged: save it again and send that one")

    def is_refused(self, message: str) -> InvalidArtifactError:
        """Readable, but not what the service takes."""
        return InvalidArtifactError(self.refused, message)


MODEL_REFUSALS = Refusals(
    noun="model",
    not_a_zip=Reason.MODEL_NOT_A_ZIP,
    truncated=Reason.MODEL_TRUNCATED,
    corrupt=Reason.MODEL_CORRUPT,
    refused=Reason.MODEL_REFUSED,
)

DATASET_REFUSALS = Refusals(
    noun="dataset",
    not_a_zip=Reason.DATASET_UNREADABLE,
    truncated=Reason.DATASET_UNREADABLE,
    corrupt=Reason.DATASET_UNREADABLE,
    refused=Reason.DATASET_UNREADABLE,
)


def shown(name: str, limit_characters: int = 80) -> str:
    """A name from a file, fit for a message: escaped and capped."""
    text = ascii(name)
    return text if len(text) <= limit_characters else f"{text[: limit_characters - 4]}...'"
