"""Messages to the engine's words. Every bound on input is here and nowhere else."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adapter_store.errors import InvalidName
from adapter_store.layout import DEFAULT_TENANT, AdapterRef, check_id, parse_ref
from inference_node.addresses import AFFINITY_HEADER
from inference_node.errors import InvalidRequest
from inference_node.pb.lorapool.v1 import inference_pb2 as pb
from inference_node.request import Output, Request, Sampling, Stopping
from inference_node.rpc.engine_port import PromptEncoder
from inference_node.rpc.scopes import HIGHEST
from inference_node.text import ChatMessage

DEFAULT_NEW_TOKENS = 128
MAX_TEMPERATURE = 2.0
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 2.0
MAX_PENALTY = 2.0
MAX_BIASES = 1024
MAX_BIAS = 100.0
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 8
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
MAX_MESSAGES = 1024
MAX_AFFINITY_BYTES = 256
MAX_PAGE = 1000
DEFAULT_PAGE = 100
MAX_PAGE_TOKEN = 2048
"""Stores choose the length of what is in it."""
CHARACTERS_PER_TOKEN = 64
"""Text longer than this many characters per token of context is refused before it is tokenised."""

QUICK_BYTES = 512
"""A message of so many is converted in a fraction of a millisecond, tokenising included: about what
handing it to another thread and back costs."""

GREEDY, TEXT_ALONE = Sampling(), Output()
"""What is meant by saying nothing."""

_REQUEST_ID = re.compile(r"[!-~]{1,64}")
_ROLES = {
    pb.CHAT_ROLE_SYSTEM: "system",
    pb.CHAT_ROLE_USER: "user",
    pb.CHAT_ROLE_ASSISTANT: "assistant",
}


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Of a version in its adapter's log."""

    generation: int
    label: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the model allows."""

    max_context: int
    vocab_size: int


def to_request(
    message: pb.GenerateRequest,
    *,
    bounds: Bounds,
    encoder: PromptEncoder,
    deadline: float,
    new_id: Callable[[], str],
) -> Request:
    """The engine's request, with a `new_id` where it brings none; takes as long as tokenising does.

    Raises InvalidRequest with the field's path, relative to GenerateRequest.
    """
    tenant = to_tenant(message.tenant)
    if message.adapter:
        to_ref(tenant, message.adapter)
    if message.request_id and not _REQUEST_ID.fullmatch(message.request_id):
        raise InvalidRequest("request_id", "must be 1 to 64 printable ASCII characters, no spaces")
    to_generation(message.min_generation)
    if message.min_generation and not message.adapter:
        raise InvalidRequest("min_generation", "the base model has no generations")
    if not -HIGHEST <= message.priority <= HIGHEST:
        raise InvalidRequest("priority", f"must be {-HIGHEST} to {HIGHEST}")
    return Request(
        request_id=message.request_id or new_id(),
        tenant=tenant,
        adapter=message.adapter,
        sampling=_sampling(message.sampling, bounds) if message.HasField("sampling") else GREEDY,
        stopping=_stopping(message.stopping, bounds),
        output=_output(message.output) if message.HasField("output") else TEXT_ALONE,
        prompt=_prompt(message, bounds, encoder),
        min_generation=message.min_generation,
        deadline=deadline,
        priority=message.priority,
        affinity_key=to_affinity_key(message.affinity_key),
    )


def is_quick(message: pb.GenerateRequest) -> bool:
    """Whether `to_request` may run where nothing may take long."""
    return message.ByteSize() <= QUICK_BYTES


def check_route(metadata: Iterable[tuple[str, str | bytes]] | None, adapter: str) -> None:
    """A request that says in its header where it belongs must mean the adapter that it is for.

    Without that, a caller who sends another name fills nodes with adapters that they do not serve.
    Raises InvalidRequest.
    """
    name = adapter.partition("@")[0]
    if any(key == AFFINITY_HEADER and value != name for key, value in metadata or ()):
        raise InvalidRequest(
            AFFINITY_HEADER,
            "routes the request as if it were for another adapter",
            hint="set the header to the name in `adapter`, without a version, or leave it out",
        )


def to_tenant(text: str) -> str:
    """Raises InvalidRequest for what is no tenant's name."""
    tenant = text or DEFAULT_TENANT
    try:
        return check_id("tenant", tenant)
    except InvalidName as error:
        raise InvalidRequest("tenant", str(error), hint=error.hint) from error


def to_ref(tenant: str, text: str) -> AdapterRef:
    """`name`, `name@label` or `name@sha256:<digest>`. Raises InvalidRequest."""
    try:
        return parse_ref(text, tenant=tenant)
    except InvalidName as error:
        raise InvalidRequest("adapter", str(error), hint=error.hint) from error


def to_name(tenant: str, text: str) -> AdapterRef:
    """An adapter's name without a version. Raises InvalidRequest."""
    ref = to_ref(tenant, text)
    if ref.pinned:
        raise InvalidRequest("adapter", "must be a name without a version")
    return ref


def to_generation(number: int) -> int:
    """Raises InvalidRequest for a negative one."""
    if number < 0:
        raise InvalidRequest("min_generation", "must not be negative")
    return number


def to_page_size(number: int) -> int:
    """Raises InvalidRequest beyond MAX_PAGE."""
    if number > MAX_PAGE:
        raise InvalidRequest("page_size", f"must be at most {MAX_PAGE}")
    return number or DEFAULT_PAGE


def from_page_token(token: str) -> str:
    """What `published.page_token` made it of. Raises InvalidRequest."""
    try:
        if len(token) > MAX_PAGE_TOKEN:
            raise ValueError
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidRequest("page_token", "is not one that a page came with") from None


def to_place(token: str) -> Place | None:
    """Where a page of versions goes on; None for the first. Raises InvalidRequest."""
    if not token:
        return None
    generation, _, label = from_page_token(token).partition(".")
    if not (generation.isascii() and generation.isdigit() and len(generation) <= 19):
        raise InvalidRequest("page_token", "is not one that a page came with")
    return Place(int(generation), label)


def to_affinity_key(text: str) -> str:
    """Raises InvalidRequest for one that is too long."""
    if len(text.encode()) > MAX_AFFINITY_BYTES:
        raise InvalidRequest("affinity_key", f"must be at most {MAX_AFFINITY_BYTES} bytes long")
    return text


def to_tokens(
    message: pb.TokenizeRequest, *, bounds: Bounds, encoder: PromptEncoder
) -> tuple[int, ...]:
    """The prompt as the model reads it. Raises InvalidRequest."""
    if message.WhichOneof("input") is None:
        raise InvalidRequest("input", "one of prompt and chat is required")
    return _encoded(message, bounds, encoder)


def _prompt(message: pb.GenerateRequest, bounds: Bounds, encoder: PromptEncoder) -> tuple[int, ...]:
    field = message.WhichOneof("input")
    if field is None:
        raise InvalidRequest("input", "one of prompt, token_ids and chat is required")
    if field == "token_ids":
        ids = tuple(message.token_ids.ids)
        _check_token_ids("token_ids.ids", ids, bounds)
    else:
        ids = _encoded(message, bounds, encoder)
    if not ids:
        raise InvalidRequest(field, "must be at least one token long")
    if len(ids) >= bounds.max_context:
        raise InvalidRequest(
            field,
            f"is {len(ids)} tokens long; at most {bounds.max_context - 1} leave room to answer",
        )
    return ids


def _encoded(
    message: pb.GenerateRequest | pb.TokenizeRequest, bounds: Bounds, encoder: PromptEncoder
) -> tuple[int, ...]:
    if message.WhichOneof("input") == "chat":
        return encoder.encode_chat(_messages(message.chat, bounds))
    _check_length("prompt", len(message.prompt), bounds)
    return encoder.encode(message.prompt)


def _messages(chat: pb.Chat, bounds: Bounds) -> list[ChatMessage]:
    if not 1 <= len(chat.messages) <= MAX_MESSAGES:
        raise InvalidRequest("chat.messages", f"must be 1 to {MAX_MESSAGES} messages")
    _check_length("chat", sum(len(m.content) for m in chat.messages), bounds)
    for index, message in enumerate(chat.messages):
        if message.role not in _ROLES:
            raise InvalidRequest(
                f"chat.messages[{index}].role", "must be system, user or assistant"
            )
    return [ChatMessage(_ROLES[m.role], m.content) for m in chat.messages]


def _check_length(field: str, characters: int, bounds: Bounds) -> None:
    if characters > bounds.max_context * CHARACTERS_PER_TOKEN:
        raise InvalidRequest(
            field,
            f"{characters} characters cannot fit a context of {bounds.max_context} tokens",
        )


def _check_token_ids(field: str, ids: tuple[int, ...], bounds: Bounds) -> None:
    for index, token_id in enumerate(ids):
        if token_id >= bounds.vocab_size:
            raise InvalidRequest(
                f"{field}[{index}]", f"{token_id} is not below {bounds.vocab_size}"
            )


def _sampling(message: pb.Sampling, bounds: Bounds) -> Sampling:
    top_p = message.top_p if message.HasField("top_p") else 1.0
    if not 0 < top_p <= 1:
        raise InvalidRequest("sampling.top_p", "must be above 0 and at most 1")
    return Sampling(
        temperature=_number(message, "temperature", 0.0, 0.0, MAX_TEMPERATURE),
        top_p=top_p,
        top_k=message.top_k,
        min_p=_number(message, "min_p", 0.0, 0.0, 1.0),
        repetition_penalty=_number(
            message, "repetition_penalty", 1.0, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
        ),
        presence_penalty=_number(message, "presence_penalty", 0.0, -MAX_PENALTY, MAX_PENALTY),
        frequency_penalty=_number(message, "frequency_penalty", 0.0, -MAX_PENALTY, MAX_PENALTY),
        logit_bias=_logit_bias(message, bounds),
        seed=message.seed if message.HasField("seed") else None,
    )


def _number(message: pb.Sampling, name: str, unset: float, low: float, high: float) -> float:
    value: float = getattr(message, name) if message.HasField(name) else unset  # type: ignore[arg-type]
    if not low <= value <= high:
        raise InvalidRequest(f"sampling.{name}", f"must be {low:g} to {high:g}")
    return value


def _logit_bias(message: pb.Sampling, bounds: Bounds) -> dict[int, float]:
    if len(message.logit_bias) > MAX_BIASES:
        raise InvalidRequest("sampling.logit_bias", f"must be at most {MAX_BIASES} tokens")
    for token_id, bias in message.logit_bias.items():
        field = f"sampling.logit_bias[{token_id}]"
        if token_id >= bounds.vocab_size:
            raise InvalidRequest(field, f"{token_id} is not below {bounds.vocab_size}")
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise InvalidRequest(field, f"must be {-MAX_BIAS:g} to {MAX_BIAS:g}")
    return dict(message.logit_bias)


def _output(message: pb.Output) -> Output:
    if message.top_logprobs > MAX_TOP_LOGPROBS:
        raise InvalidRequest("output.top_logprobs", f"must be at most {MAX_TOP_LOGPROBS}")
    if message.top_logprobs and not message.logprobs:
        raise InvalidRequest("output.top_logprobs", "needs `logprobs`")
    return Output(logprobs=message.logprobs, top_logprobs=message.top_logprobs, echo=message.echo)


def _stopping(message: pb.Stopping, bounds: Bounds) -> Stopping:
    new_tokens = DEFAULT_NEW_TOKENS
    if message.HasField("max_new_tokens"):
        new_tokens = message.max_new_tokens
        if not 1 <= new_tokens <= bounds.max_context:
            raise InvalidRequest("stopping.max_new_tokens", f"must be 1 to {bounds.max_context}")
    if message.min_new_tokens > new_tokens:
        raise InvalidRequest("stopping.min_new_tokens", f"must be at most {new_tokens}")
    # Read once: each look at a list of a message makes an object.
    stops, stop_token_ids = tuple(message.stop), tuple(message.stop_token_ids)
    if len(stops) > MAX_STOPS:
        raise InvalidRequest("stopping.stop", f"must be at most {MAX_STOPS} texts")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            raise InvalidRequest(
                f"stopping.stop[{index}]", f"must be 1 to {MAX_STOP_BYTES} bytes long"
            )
    if len(stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest("stopping.stop_token_ids", f"must be at most {MAX_STOP_TOKEN_IDS} ids")
    _check_token_ids("stopping.stop_token_ids", stop_token_ids, bounds)
    return Stopping(
        max_new_tokens=new_tokens,
        min_new_tokens=message.min_new_tokens,
        stop=stops,
        stop_token_ids=stop_token_ids,
        ignore_eos=message.ignore_eos,
    )
