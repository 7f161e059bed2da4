"""Commands against a real server over a scripted engine: output, streams, exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inference_node import errors
from inference_node.cli.console import OTHER, exit_code
from inference_node.request import Output, Sampling, Stopping
from tests.inference_node.cli.program import Ran, Run
from tests.inference_node.rpc.authority import Authority
from tests.inference_node.rpc.running_node import CONFIG, running_node
from tests.inference_node.rpc.scripted_engine import DIGEST, ScriptedEngine, fails
from tests.inference_node.rpc.test_status import named_errors


def test_an_answer_is_on_stdout_and_who_gave_it_on_stderr(
    run: Run, address: str, engine: ScriptedEngine
) -> None:
    ran = run("generate", "hi", "-a", "ada@v3", "--address", address, "--stop", "X", "--seed", "5")
    assert (ran.code, ran.out) == (0, "hello wörld\n")
    assert f"ada@v3 generation 7 sha256:{DIGEST[:12]}" in ran.err
    assert "first token" in ran.err
    assert "tokens/s" in ran.err
    request = engine.submitted[0]
    assert request.prompt == tuple(b"<user>hi")
    assert (request.adapter, request.stopping.stop, request.sampling.seed) == ("ada@v3", ("X",), 5)


def test_a_raw_prompt_from_stdin_goes_as_it_is(
    run: Run, address: str, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("once"))
    ran = run("generate", "-", "--raw", "--address", address, "--max-new-tokens", "4")
    assert ran.code == 0
    assert "base model" in ran.err
    assert engine.submitted[0].prompt == tuple(b"once")
    assert engine.submitted[0].stopping.max_new_tokens == 4


def test_json_is_one_object_with_everything(run: Run, address: str) -> None:
    ran = run("generate", "hi", "-a", "ada", "--json", "--address", address)
    answer = json.loads(ran.out)
    assert answer["text"] == "hello wörld"
    assert answer["finish_reason"] == "stop"
    assert answer["served"]["digest"] == DIGEST
    assert answer["usage"]["completion_tokens"] == 2


def test_every_rule_has_a_flag(run: Run, address: str, engine: ScriptedEngine) -> None:
    flags = "--temperature 0.5 --top-p 0.9 --top-k 4 --min-p 0.1 --repetition-penalty 1.2"
    flags += (
        " --presence-penalty -0.5 --frequency-penalty 0.25 --logit-bias 7=-100 --logit-bias 8=2"
    )
    flags += " --min-new-tokens 2 --stop-token-id 5 --ignore-eos --logprobs --top-logprobs 1 --echo"
    flags += " --priority -2 --affinity-key customer-7"
    ran = run("generate", "hi", "--raw", "--json", "--address", address, *flags.split())
    assert ran.code == 0, ran.err
    request = engine.submitted[0]
    assert request.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias={7: -100.0, 8: 2.0},
    )
    assert request.stopping == Stopping(min_new_tokens=2, stop_token_ids=(5,), ignore_eos=True)
    assert request.output == Output(logprobs=True, top_logprobs=1, echo=True)
    assert (request.priority, request.affinity_key) == (-2, "customer-7")
    answer = json.loads(ran.out)
    assert [each["logprob"] for each in answer["logprobs"]] == [-1.5, -1.5]
    assert answer["logprobs"][0]["top"] == [{"token_id": 65, "text": "A", "logprob": -0.5}]
    assert answer["echo"]["text"] == "hi"


def test_logprobs_are_told_on_stderr_and_a_malformed_bias_is_usage(run: Run, address: str) -> None:
    ran = run("generate", "hi", "--raw", "--logprobs", "--echo", "--address", address)
    assert ran.out == "hihello wörld\n"
    assert "-1.500 rank 2" in ran.err
    assert run("generate", "hi", "--logit-bias", "7", "--address", address).code == 2


def test_commands_speak_tls_when_they_are_told_who_may_sign(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = replace(CONFIG, tls=replace(authority.issue(), client_ca=authority.file))
    mine = authority.issue("caller.example", into="caller")
    with running_node(ScriptedEngine(), tls) as address:
        reach = ["--address", address, "--ca", str(authority.file)]
        known = [*reach, "--cert", str(mine.cert), "--key", str(mine.key)]
        assert run("generate", "hi", *known).out == "hello wörld\n"
        assert run("status", "--check", *known).code == 0
        assert run("generate", "hi", *reach, "--timeout", "5").code == 6
        assert run("generate", "hi", *reach, "--cert", str(mine.cert)).code == 2


def test_a_token_is_not_sent_in_the_clear_to_another_machine(run: Run, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret-token")
    ran = run("generate", "hi", "--address", "10.0.0.1:1", "--token-file", str(token))
    assert ran.code == 2
    assert "in the clear" in ran.err
    assert "secret-token" not in ran.err


CODES = [
    (errors.AdapterNotFound("x"), 3),
    (errors.StaleNode("x"), 4),
    (errors.AdapterIncompatible("x"), 4),
    (errors.AdapterCorrupt("x"), 5),
    (errors.QueueFull("x"), 7),
    (errors.PoolFull("x"), 7),
    (errors.DeadlineExpired("x"), 8),
    (errors.ModelFailure("x"), 1),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=[type(e).__name__ for e, _ in CODES])
def test_an_error_has_a_line_and_a_stable_exit_code(
    run: Run, address: str, engine: ScriptedEngine, error: errors.NodeError, code: int
) -> None:
    engine.script = fails(error)
    ran = run("generate", "hi", "--address", address)
    assert (ran.code, ran.err.splitlines()[0]) == (code, "error: x")
    ran = run("generate", "hi", "--json", "--address", address)
    assert ran.code == code
    assert json.loads(ran.out)["error"]["reason"] == error.reason


UNNAMED = {errors.Cancelled, errors.ModelFailure, errors.EngineFailure}
"""Nothing that a caller could act on by their kind."""


def test_every_error_that_a_caller_can_act_on_has_a_code_of_its_own() -> None:
    for kind in named_errors():
        field = ("field",) if issubclass(kind, errors.InvalidRequest) else ()
        assert (exit_code(kind(*field, "x")) == OTHER) == (kind in UNNAMED), kind


def test_a_bad_request_and_bad_usage_are_usage_errors(run: Run, address: str) -> None:
    assert run("generate", "hi", "-a", "../x", "--address", address).code == 2
    assert run("generate").code == 2
    assert run("generate", "hi", "--max-new-tokens", "0").code == 2


def test_no_node_is_its_own_exit_code(run: Run) -> None:
    ran = run("generate", "hi", "--address", "127.0.0.1:1")
    assert ran.code == 6
    assert "inference-node serve" in ran.err
    assert run("status", "--check", "--address", "127.0.0.1:1").code == 6


def test_status_tells_what_is_served(run: Run, address: str) -> None:
    ran = run("status", "--address", address)
    assert ran.code == 0
    assert "7 of 8 pages free" in ran.out
    told = json.loads(run("status", "--json", "--address", address).out)
    assert (told["ready"], told["name"], told["pool"]["pages_free"]) == (True, "scripted", 7)


def test_a_check_prints_nothing(run: Run, address: str) -> None:
    assert run("status", "--check", "--address", address) == Ran(0, "", "")


def test_serving_beyond_loopback_is_refused_before_anything_is_loaded(run: Run) -> None:
    ran = run("serve", "--listen", "0.0.0.0:50051")
    assert ran.code == 2
    assert "LORAPOOL_INSECURE" in ran.err


def test_help_waits_for_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['inference-node', 'generate', '--help']\n"
        "from inference_node.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'grpc', 'transformers', 'pydantic_settings', 'boto3', 'redis'}\n"
        "sys.exit(f'{heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--min-generation" in done.stdout


SERVE = """
import asyncio
from inference_node.rpc.limits import ServerConfig
from inference_node.rpc.server import serve
from tests.inference_node.rpc.scripted_engine import ScriptedEngine, hangs
config = ServerConfig(listen="127.0.0.1:0", drain_delay={delay}, drain_seconds={drain})
asyncio.run(serve(ScriptedEngine(hangs), config, lambda port: print(port, flush=True)))
"""


@pytest.mark.parametrize(("signals", "delay", "drain"), [(1, 0, 0.2), (2, 60, 60)])
def test_a_signal_drains_and_exits_0_and_a_second_one_hurries(
    signals: int, delay: float, drain: float
) -> None:
    from inference_node.client import Client, NodeUnreachable

    node = subprocess.Popen(
        [sys.executable, "-c", SERVE.format(delay=delay, drain=drain)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert node.stdout is not None
    with node, Client(f"127.0.0.1:{int(node.stdout.readline())}") as client:
        stream = client.stream("hi")
        assert next(iter(stream)) == "one "
        node.terminate()
        if signals == 2:
            while client.ready():
                pass
            node.terminate()
        assert node.wait(20) == 0
        with pytest.raises(NodeUnreachable):
            _ = stream.result
