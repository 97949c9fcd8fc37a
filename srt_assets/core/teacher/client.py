"""One call to the teacher through LiteLLM, and LiteLLM's facts about models. Other modules do not import LiteLLM."""

import asyncio
import os
import time
from functools import partial
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.masking import redact
from srt_assets.core.teacher import address, unfit
from srt_assets.core.teacher.answers import Answer, as_json, read_body, read_response
from srt_assets.core.teacher.ask import Counter, Room
from srt_assets.core.teacher.call import LOCAL, LOCAL_SAMPLING, Call
from srt_assets.core.teacher.failures import answered_with_an_error
from srt_assets.core.teacher.local import CONTEXT_TOKENS
from srt_assets.settings import Teacher

_LOCAL_MODEL = "openai/local"
_PRICES = ("input_cost_per_token", "output_cost_per_token")
_CACHED_PRICE = "cache_read_input_token_cost"
_NO_KEY = "none"  # a user's own server may need no key, but the clients insist on one
_LOCAL_TIMEOUT_S = 600.0  # the embedded server is as slow as this machine; an early timeout would not help


def litellm() -> Any:
    """LiteLLM, imported on first use, with its offline price table, without its advertising and its own retries."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    # Without this, LiteLLM loads a file `.env` near its package or near the data, and sets the variables in it (such as
    # PYTHONPATH, or an address to which the keys are then sent).
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")
    # With its pool of 500 connections per host, calls would queue while their timeout runs. teacher.concurrency is the
    # limit instead.
    for pool in ("AIOHTTP_CONNECTOR_LIMIT", "AIOHTTP_CONNECTOR_LIMIT_PER_HOST"):
        os.environ.setdefault(pool, "100000")
    import logging
    import warnings

    import litellm as module
    from litellm.litellm_core_utils import logging_worker

    module.suppress_debug_info = True
    module.num_retries = 0
    module.drop_params = False
    logging.getLogger("LiteLLM").setLevel(logging.ERROR)
    # These warnings quote replies of an unexpected form; `answers` reads such replies or raises an error.
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings")
    # The program uses none of LiteLLM's callbacks. Their queue falls behind and kept 7 kB of memory per call.
    worker: Any = logging_worker.GLOBAL_LOGGING_WORKER
    worker.ensure_initialized_and_enqueue = lambda async_coroutine: async_coroutine.close()
    return module


class Client:
    """Calls one model at one endpoint. Make it with `connect`; close it on the loop that used it."""

    def __init__(self, teacher: Teacher, api_base: str, api_key: str | None) -> None:
        self._module = litellm()
        self.teacher = teacher
        self.local = teacher.model == LOCAL
        self.api_base = api_base
        self.lacks_key = ""  # the key's variable, if it is not set; the user's own endpoint may not need a key
        self._model = _LOCAL_MODEL if self.local else teacher.model
        self._at = {name: text for name, text in (("api_base", api_base), ("api_key", api_key)) if text}
        self.room = room_of(teacher, self._count_at_server)

    async def complete(self, call: Call, max_tokens: int) -> Answer:
        """Send the call and wait for its answer. Raises Unreadable, or what LiteLLM raises: see `failures.classify`."""
        options: dict[str, Any] = self._at | self.teacher.sampling | {self.teacher.max_tokens_name: max_tokens}
        if isinstance(call.shape, dict):
            options["response_format"] = call.shape
        elif call.shape:
            options["extra_body"] = {"grammar": call.shape}
        if self.local:
            options["extra_body"] = options.get("extra_body", {}) | LOCAL_SAMPLING
        limit = max(self.teacher.timeout_s, _LOCAL_TIMEOUT_S) if self.local else self.teacher.timeout_s
        sent: list[Any] = []  # the provider's answers before LiteLLM converts them

        def look(details: dict[str, Any]) -> None:
            if details.get("log_event_type") == "post_api_call":
                sent.append(details.get("original_response"))

        response: Any = None
        started = time.monotonic()
        try:
            # The clients' own timeout applies to each read: a server that sends a byte now and then never reaches it.
            async with asyncio.timeout(limit):
                response = await self._module.acompletion(
                    model=self._model,
                    messages=call.messages,
                    temperature=self.teacher.temperature,
                    timeout=limit,
                    max_retries=0,
                    logger_fn=look,
                    **options,
                )
        except TimeoutError:
            raise TimeoutError(f"no whole reply within {limit:g} s (teacher.timeout_s)") from None
        except Exception as error:
            # An answer that LiteLLM cannot convert is paid for, so it is read below.
            raw = as_json(sent)
            if answered_with_an_error(error) or not isinstance(raw, dict):
                raise
        else:
            raw = as_json(sent)
        latency_s = time.monotonic() - started
        if isinstance(raw, dict) and (response is None or "choices" in raw):
            return read_body(raw, latency_s)
        return read_response(response, raw, latency_s)

    def body(self, call: Call, max_tokens: int) -> dict[str, Any]:
        """The call as a line of an OpenAI batch file."""
        name, provider, *_ = self._module.get_llm_provider(self._model, api_base=self.api_base or None)
        wanted: dict[str, Any] = {"temperature": self.teacher.temperature, self.teacher.max_tokens_name: max_tokens}
        if isinstance(call.shape, dict):
            wanted["response_format"] = call.shape
        # LiteLLM renames parameters for some models.
        facts = self._module.utils.get_optional_params(
            model=name, custom_llm_provider=provider, **wanted, **self.teacher.sampling
        )
        more = facts.pop("extra_body", None) or {}
        facts.pop("stream", None)
        return {"model": name, "messages": call.messages, **facts, **more}

    def endpoint(self) -> dict[str, Any]:
        """Provider, api_base and key for LiteLLM's batch functions. UserError if the provider has no file batches."""
        _, provider, *_ = self._module.get_llm_provider(self._model, api_base=self.api_base or None)
        if self.local or provider not in ("openai", "azure", "hosted_vllm"):
            raise UserError(
                f"teacher.batch = true, but file batches are not offered for {self.teacher.model!r}",
                "set teacher.batch = false, or use a model of openai, azure or hosted_vllm",
            )
        return {"custom_llm_provider": provider, **self._at}

    async def _count_at_server(self, call: Call) -> int:
        import httpx

        text = "\n".join(m["content"] for m in call.messages)
        async with httpx.AsyncClient() as http:
            reply = await http.post(self.api_base.removesuffix("/v1") + "/tokenize", json={"content": text})
        return len(reply.json()["tokens"]) + 8 * len(call.messages)

    async def close(self) -> None:
        """Close the connections LiteLLM keeps for this event loop."""
        await self._module.close_litellm_async_clients()
        self._module.in_memory_llm_clients_cache.flush_cache()


def connect(teacher: Teacher, api_base: str = "") -> Client:
    """A client for the settings.

    UserError for a model that LiteLLM does not know, a missing key (the message names its variable), or a setting that
    the model does not accept.
    """
    base = api_base or teacher.api_base
    if teacher.model == LOCAL:
        return Client(teacher, base, _NO_KEY)
    provider = check_model(teacher)
    if not base and (wrong := address.fault_in_environment(provider)):
        name, why = wrong
        raise UserError(f"the environment variable {name}: {why}", f"correct {name}, or set teacher.api_base")
    missing = litellm().validate_environment(teacher.model).get("missing_keys") or []
    keys = [name for name in missing if name.endswith(("_KEY", "_TOKEN"))]
    if keys and not base:
        raise UserError(
            f"no API key for teacher.model = {teacher.model!r}: the environment variable {' / '.join(keys)} is not set",
            f"export {keys[0]}=… before the run (keys never go into srt.toml)",
        )
    unfit.check(teacher, partial(_objection, teacher))
    client = Client(teacher, base, _NO_KEY if keys else None)
    client.lacks_key = " / ".join(keys)
    return client


def _objection(teacher: Teacher, parameters: dict[str, Any]) -> str | None:
    """LiteLLM's objection to sending these parameters to the model; None if it has none."""
    module = litellm()
    name, provider, *_ = module.get_llm_provider(teacher.model, api_base=teacher.api_base or None)
    if own := sorted(parameters.keys() & {*module.types.utils.all_litellm_params}):
        return f"{own[0]} is a switch of LiteLLM's, and no parameter of a request"
    try:
        module.utils.get_optional_params(model=name, custom_llm_provider=provider, **parameters)
    except module.exceptions.UnsupportedParamsError as error:
        return str(error)
    return None


def room_of(teacher: Teacher, count_local: Counter) -> Room:
    """The teacher's limits, chat framing included. `count_local` counts tokens for `local`, LiteLLM for all others."""
    if teacher.model == LOCAL:
        return Room(teacher.context_tokens or CONTEXT_TOKENS, teacher.max_tokens, count_local)
    limits = _model_info(teacher.model)

    async def count(call: Call) -> int:
        return int(litellm().token_counter(model=teacher.model, messages=call.messages))

    context = teacher.context_tokens or limits.get("max_input_tokens") or None
    return Room(context, min(teacher.max_tokens, limits.get("max_output_tokens") or teacher.max_tokens), count)


def check_model(teacher: Teacher) -> str:
    """The provider of the model. UserError if LiteLLM knows none. Needs no key and makes no call."""
    if teacher.model == LOCAL:
        return LOCAL
    module = litellm()
    try:
        _, provider, *_ = module.get_llm_provider(teacher.model, api_base=teacher.api_base or None)
    except module.exceptions.BadRequestError:
        raise UserError(
            f"teacher.model = {teacher.model!r} names no provider LiteLLM knows",
            "write provider/model as in docs.litellm.ai/docs/providers (your own server: openai/NAME with api_base)",
        ) from None
    return str(provider)


def _model_info(model: str) -> dict[str, Any]:
    module = litellm()
    try:
        return dict(module.get_model_info(model))
    except Exception as error:  # noqa: BLE001 - LiteLLM raises a bare Exception for a model it has no entry for
        if "mapped" in str(error):
            return {}
        raise UserError(
            f"LiteLLM cannot describe the model {model!r}: {redact(str(error))}", "check teacher.model"
        ) from None


def price_in_litellm(model: str, batch: bool = False) -> tuple[float, float, float | None] | None:
    """USD per prompt token, completion token and cached prompt token from LiteLLM's table; None if it has no price.

    `batch`: use the prices of file batches. The cached price is None if the table has none, and for batches.
    """
    info = _model_info(model)
    if batch:
        table = litellm().model_cost.get(info.get("key"), {})
        info |= {name: table[f"{name}_batches"] for name in _PRICES if table.get(f"{name}_batches") is not None}
    prompt, completion, cached = (info.get(name) for name in (*_PRICES, _CACHED_PRICE))
    if prompt is None or completion is None:
        return None
    return float(prompt), float(completion), None if batch or cached is None else float(cached)
