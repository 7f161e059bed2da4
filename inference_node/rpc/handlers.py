"""RPC handlers with something around them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

Context = grpc.aio.ServicerContext[Any, Any]
Around = Callable[[Context], AbstractAsyncContextManager[object]]


class Wrapping(grpc.aio.ServerInterceptor):
    """An interceptor that has something around every call; the handler of an RPC is made once."""

    def __init__(self) -> None:
        self._made: dict[str, Handler] = {}

    def around(self, method: str) -> Around | None:
        """What to have around calls of `method`, `/package.Service/Method`; None leaves them."""
        raise NotImplementedError

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        made = self._made.get(method)
        if made is not None:
            return made
        handler = await continuation(handler_call_details)
        around = self.around(method)
        # What nobody serves is not remembered: callers choose its name.
        if handler is None or around is None:
            return handler
        self._made[method] = made = wrapped(handler, around)
        return made


def wrapped(handler: Handler, around: Around) -> Handler:
    """`handler`, every call of it inside `around`."""
    kinds: tuple[tuple[Any, Any], ...] = (
        (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
        (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    )
    behaviour, make = next(kind for kind in kinds if kind[0] is not None)
    generates = inspect.isasyncgenfunction(behaviour)
    within = _generator(behaviour, around) if generates else _method(behaviour, around)
    made: Handler = make(within, handler.request_deserializer, handler.response_serializer)
    return made


def _method(behaviour: Any, around: Around) -> Any:
    async def within(request: Any, context: Context) -> Any:
        async with around(context):
            answer = behaviour(request, context)
            # What a service leaves out is a plain function in the generated code.
            return await answer if inspect.isawaitable(answer) else answer

    return within


def _generator(behaviour: Any, around: Around) -> Any:
    async def within(request: Any, context: Context) -> AsyncIterator[Any]:
        async with around(context):
            async for response in behaviour(request, context):
                yield response

    return within
