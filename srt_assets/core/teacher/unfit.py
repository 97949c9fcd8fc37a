"""Settings that a model refuses: found by LiteLLM before the first call, else in the provider's error message.

Errors name the setting as in srt.toml, with a value to set instead. Which errors end a run is decided in `engine.py`.
"""

import re
from collections.abc import Callable
from typing import Any

from srt_assets.core.errors import StageError, UserError
from srt_assets.core.teacher.failures import Failure, without_class
from srt_assets.core.teacher.grammar import json_schema
from srt_assets.settings import Teacher

# Parameter name in a request, and the setting it comes from.
_SETTINGS = {
    "temperature": "temperature",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "maxOutputTokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "response_format": "reply_format",
    "json_schema": "reply_format",
    "structured_outputs": "reply_format",
    "grammar": "reply_format",
    "reasoning_effort": "reasoning_effort",
}
# The message may quote a record, so a name counts only in quotes or if the text says that it is wrong.
_NAMED = (
    r"[`'\"](?:{name})[`'\"]|\b(?:{name})\b\s*(?:=|:|is\b|must\b|should\b|may\b|has\b|does\b|not\b)"
    r"|parameters?:? \W*(?:{name})\b"
)
_BETWEEN = re.compile(r"between\D{0,10}(\d+(?:\.\d+)?)\D{1,10}(\d+(?:\.\d+)?)", re.IGNORECASE)
_ONLY = re.compile(r"(?:only|default|must be|equal to)\D{0,40}?(\d+(?:\.\d+)?)", re.IGNORECASE)
_AT_MOST = re.compile(
    r"(?:at most|maximum|less than or equal to|no more than|up to|between \d[\d,.]* and|<=|≤|limit)"
    r"\D{0,30}?(\d[\d,]*(?:\.\d+)?)",
    re.IGNORECASE,
)
_OF_LITELLM = re.compile(r"\s*(?:To drop|If you want to use these|set `?litellm)[\s\S]*")


def check(teacher: Teacher, refused: Callable[[dict[str, Any]], str | None]) -> None:
    """UserError for the first setting that LiteLLM would not send to this model.

    `refused` returns LiteLLM's objection to some parameters of a request, or None.
    """
    wanted: dict[str, Any] = {"temperature": teacher.temperature, teacher.max_tokens_name: teacher.max_tokens}
    if teacher.reply_format == "json_schema":
        wanted["response_format"] = json_schema("response")
    wanted |= teacher.sampling
    for name, value in wanted.items():
        if not (why := refused({name: value})):
            continue
        effort = {"reasoning_effort": teacher.reasoning_effort} if teacher.reasoning_effort else {}
        if name == "temperature" and effort and not refused({name: value} | effort):
            continue  # the model accepts this temperature at this reasoning effort
        if name == "temperature" and not refused({name: 1.0}):
            remedy = "set teacher.temperature = 1"
        else:
            remedy = _remedy(name, why, teacher)
        raise UserError(
            f"teacher.model = {teacher.model!r} does not take {_setting(name, teacher)}: {told(why)}", remedy
        )


def named(failure: Failure, teacher: Teacher) -> tuple[str, str] | None:
    """The setting that was refused, and a remedy; None if the provider's message names no parameter."""
    names = [*_SETTINGS, *teacher.parameters]
    name = failure.param if failure.param in names else None
    if name is None:
        for candidate in names:
            if re.search(_NAMED.format(name=re.escape(candidate)), failure.message, re.IGNORECASE):
                name = candidate
                break
    if name is None:
        return None
    return _setting(name, teacher), _remedy(name, failure.message, teacher)


def told(message: str) -> str:
    """An objection without LiteLLM's advice, which names switches that srt.toml does not have."""
    return " ".join(_OF_LITELLM.sub("", without_class(message)).split()).rstrip(" .")


def _setting(name: str, teacher: Teacher) -> str:
    setting = _SETTINGS.get(name)
    if name in teacher.parameters:
        return f"teacher.parameters.{name} = {teacher.parameters[name]!r}"
    if setting == "reply_format" and teacher.reply_format == "auto":
        return 'teacher.reply_format = "auto"'
    value = getattr(teacher, setting) if setting else None
    return f"teacher.{setting} = {value!r}"


def _remedy(name: str, message: str, teacher: Teacher) -> str:
    setting = _SETTINGS.get(name)
    if name in teacher.parameters or setting is None:
        return f"take {name} out of teacher.parameters"
    if setting == "reply_format":
        return 'set teacher.reply_format = "markers"'
    if setting == "reasoning_effort":
        return 'set teacher.reasoning_effort to one it takes, or to none at all ("")'
    if setting == "max_tokens":
        other = re.search(r"\bmax_(?:completion_)?tokens\b(?=.{0,4} instead)", message)
        if other and other[0] != teacher.max_tokens_name:
            return f'set teacher.max_tokens_name = "{other[0]}"'
        if at_most := _AT_MOST.search(message):
            return f"set teacher.max_tokens = {at_most[1].replace(',', '')} or less"
        return "set teacher.max_tokens to a number it takes"
    if between := _BETWEEN.search(message):
        return f"set teacher.temperature to a number between {between[1]} and {between[2]}"
    if only := _ONLY.search(message):
        return f"set teacher.temperature = {only[1]}"
    if at_most := _AT_MOST.search(message):
        return f"set teacher.temperature = {at_most[1]} or less"
    return "set teacher.temperature = 1"


def halt(failure: Failure, teacher: Teacher) -> Exception:
    """The error that ends a run because every further call would fail in the same way."""
    where = f"teacher.model = {teacher.model!r}"
    if failure.kind == "no_funds":
        return StageError(
            f"the provider of {where} says that the account has no funds left: {failure.message}",
            "top it up and run again; replies so far are kept and no record is marked failed",
        )
    if failure.kind == "open_files":
        return UserError(
            f"teacher.concurrency = {teacher.concurrency} needs more open files than this process may have",
            "lower teacher.concurrency, or raise the limit (ulimit -n), and run again; replies so far are kept",
        )
    message = told(failure.message)
    if failure.kind == "bad_request" and (found := named(failure, teacher)):
        setting, remedy = found
        return UserError(f"{where} refuses {setting}: {message}", f"{remedy}, and run again")
    refused = {
        "authentication": "check the provider's API key in the environment",
        "permission": "check what the API key may do",
        "not_found": "check teacher.model and teacher.api_base",
        "bad_request": "check the teacher settings (reply_format, temperature, model) and the server",
    }
    if failure.kind in refused:
        return UserError(f"{where} refuses every call: {message}", refused[failure.kind])
    unsent = {
        "address": "correct teacher.api_base or the variable with the address; keys go into a variable of their own",
        "header": "set the API key anew: it has a character that cannot be sent, a line end at its end perhaps",
        "package": "install the package that it names, or name another teacher.model",
        "certificate": "correct teacher.api_base, or name the server's certificate in the variable SSL_CERT_FILE",
    }
    message = f"{where} cannot be asked: {failure.error_type}, {message}"
    if failure.kind in unsent:
        return UserError(message, unsent[failure.kind])
    return StageError(message, "check the teacher settings, and the variables of addresses, keys and proxies")
