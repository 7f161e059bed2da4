"""Decoding token by token, and finding stop strings in pieces, give what the whole would give."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_node.errors import InvalidRequest
from inference_node.model.default_base import ensure_default_base
from inference_node.text import ChatMessage, Detokenizer, StopMatcher, Tokenizer

EMOJI = "héllo 👩‍👩‍👧 wörld — 日本語 🎉🎉 ok"


@pytest.fixture(scope="module")
def smol() -> Tokenizer:
    return Tokenizer(str(ensure_default_base()))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Like sentencepiece: decoding strips the first space and falls back to bytes."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "▁cat", "s", "▁sat", ",", "a", "b", "é"]
    backend = Backend(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    folder = tmp_path_factory.mktemp("metaspace")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    return Tokenizer(str(folder))


def streamed(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@pytest.mark.model
def test_pieces_of_random_tokens_join_to_the_decoding_of_the_whole(smol: Tokenizer) -> None:
    draw = random.Random(7)
    # Byte tokens and special tokens come up far more often than among all ids.
    bytes_and_specials = [*range(300), *smol.encode(EMOJI)]
    for _ in range(300):
        ids = [
            draw.choice(bytes_and_specials) if draw.random() < 0.7 else draw.randrange(49152)
            for _ in range(draw.randrange(1, 60))
        ]
        assert "".join(streamed(smol.detokenizer(), ids)) == smol.decode(ids), ids


@pytest.mark.model
def test_decoding_each_token_alone_would_be_caught(smol: Tokenizer) -> None:
    ids = smol.encode(EMOJI)
    assert "".join(smol.decode([token_id]) for token_id in ids) != smol.decode(ids)


@pytest.mark.model
def test_no_piece_holds_part_of_a_character(smol: Tokenizer) -> None:
    pieces = streamed(smol.detokenizer(), smol.encode(EMOJI))
    assert "".join(pieces) == EMOJI
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.model
def test_a_character_cut_off_by_the_end_is_shown_broken(smol: Tokenizer) -> None:
    ids = smol.encode("ok 🎉")[:-1]
    assert "".join(streamed(smol.detokenizer(), ids)) == smol.decode(ids)
    assert smol.decode(ids).endswith("\ufffd")


@pytest.mark.model
def test_the_window_stays_short_whatever_the_tokens(smol: Tokenizer) -> None:
    broken = smol.encode("🎉")[-1]
    for token_id in (broken, 2, 0, smol.encode(" a")[0]):
        detokenizer = smol.detokenizer()
        text = "".join(detokenizer.push(token_id) for _ in range(500))
        assert len(detokenizer._window) <= 32
        assert text + detokenizer.flush() == smol.decode([token_id] * 500)


@given(
    st.lists(
        st.sampled_from(["▁the", "▁cat", "▁", "s", ",", "é", "</s>", "🎉", "日", "▁sat", "a", "b"]),
        max_size=40,
    )
)
@settings(max_examples=400, deadline=None)
def test_spaces_and_fallback_bytes_survive_being_decoded_in_pieces(
    metaspace: Tokenizer, words: list[str]
) -> None:
    vocabulary = metaspace._chat.get_vocab()
    ids: list[int] = []
    for word in words:
        known = vocabulary.get(word)
        ids += [known] if known is not None else [vocabulary[f"<0x{b:02X}>"] for b in word.encode()]
    assert "".join(streamed(metaspace.detokenizer(), ids)) == metaspace.decode(ids)


def test_every_file_that_names_an_end_of_text_is_heard(metaspace: Tokenizer) -> None:
    assert metaspace.eos_token_ids == {1, 7}


def test_a_model_without_a_chat_template_says_which_field_to_use(metaspace: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as caught:
        metaspace.encode_chat([ChatMessage("user", "hi")])
    assert caught.value.field == "chat"
    assert "prompt" in caught.value.hint


@pytest.mark.model
def test_a_conversation_ends_where_the_model_speaks(smol: Tokenizer) -> None:
    ids = smol.encode_chat([ChatMessage("user", "hi")])
    text = smol._backend.decode(list(ids), skip_special_tokens=False)
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert smol.vocab_size == 49152
    assert smol.eos_token_ids == {2}


def stopped(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = ""
    for piece in pieces:
        scan = matcher.feed(piece)
        text += scan.emit
        if scan.matched is not None:
            return text, scan.matched
    return text + matcher.flush(), None


def oracle(stops: Sequence[str], text: str) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    st.lists(st.text("ab🎉", min_size=1, max_size=5), max_size=4),
    st.lists(st.text("ab🎉", max_size=4), max_size=12),
)
@settings(max_examples=500, deadline=None)
def test_stop_strings_end_the_answer_at_the_same_place_however_text_is_cut(
    stops: list[str], pieces: list[str]
) -> None:
    assert stopped(stops, pieces) == oracle(stops, "".join(pieces))


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.tuples(st.text("ab", max_size=4), st.booleans()), max_size=10),
)
@settings(max_examples=300, deadline=None)
def test_a_stop_string_that_is_not_heeded_is_text_and_the_next_one_is_found(
    stops: list[str], pieces: list[tuple[str, bool]]
) -> None:
    matcher, text, matched = StopMatcher(stops), "", None
    for piece, heed in pieces:
        scan = matcher.feed(piece, heed=heed)
        text, matched = text + scan.emit, scan.matched
        if matched is not None:
            break
    heeded = [heed for piece, heed in pieces for _ in piece]
    whole = "".join(piece for piece, _ in pieces)
    for end in range(1, len(whole) + 1):
        ending = [stop for stop in stops if whole[:end].endswith(stop)]
        if ending and heeded[end - 1]:
            longest = max(ending, key=len)
            assert matched == longest
            # What was handed out before it was heeded cannot be taken back.
            assert whole.startswith(text)
            assert len(text) >= end - len(longest)
            return
    assert matched is None
    assert text + matcher.flush() == whole


def test_nothing_that_could_begin_a_stop_string_is_handed_out() -> None:
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.feed("Fine.\n").emit == "Fine."
    assert matcher.feed("\nUs").emit == ""
    assert matcher.feed("ually.").emit == "\n\nUsually."


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher([""])
