"""The two ways a stage may end badly, each with the remedy a person needs. Nothing else belongs here."""


class _Explained(Exception):
    exit_code = 1

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}"


class UserError(_Explained):
    """The user must change something (a file, a setting, an argument): exit code 2. Names the file, row or key."""

    exit_code = 2


class StageError(_Explained):
    """The input was right but the job failed (teacher down, disk full, killed worker): exit code 1."""
