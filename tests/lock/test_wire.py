from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raidfs.errors import LockProtocolError, LockServerFull
from raidfs.lock import machine, wire
from raidfs.lock.api import LockView, Mode, ResourceView

unhurried = settings(deadline=None)  # a loaded host is no failure

numbers = st.integers(0, (1 << 63) - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=wire.TEXT_CHARACTERS_MAX)
modes = st.sampled_from(Mode)
blocks = st.binary(min_size=32, max_size=32)
maybe_blocks = st.none() | blocks
locks = st.builds(LockView, texts, modes, st.none() | modes, st.floats(0, 1e9))
resources = st.builds(ResourceView, texts, st.lists(locks, max_size=3).map(tuple), blocks, st.booleans())

client_frames = st.one_of(
    st.builds(wire.Hello, texts, numbers),
    st.builds(machine.Open, numbers, numbers, texts, texts, texts),
    st.builds(machine.Request, numbers, numbers, numbers, texts, modes, st.booleans(), st.booleans(), st.booleans()),
    st.builds(machine.Convert, numbers, numbers, numbers, modes, st.booleans(), maybe_blocks),
    st.builds(machine.Cancel, numbers, numbers, numbers, numbers),
    st.builds(machine.Release, numbers, numbers, numbers),
    st.builds(machine.Query, numbers, numbers),
    st.builds(machine.Close, numbers, numbers),
)
server_frames = st.one_of(
    st.builds(wire.Welcome, texts, numbers, numbers),
    st.builds(machine.Done, numbers, numbers),
    st.builds(machine.Granted, numbers, numbers, numbers, modes, maybe_blocks, st.booleans()),
    st.builds(machine.Refused, numbers, numbers, numbers),
    st.builds(machine.Deadlocked, numbers, numbers, numbers),
    st.builds(machine.Cancelled, numbers, numbers, numbers),
    st.builds(machine.Blocking, numbers, numbers, modes),
    st.builds(machine.Answer, numbers, numbers, st.lists(resources, max_size=3).map(tuple)),
)


def fed(decoder: wire.Decoder, data: bytes) -> list[wire.Frame]:
    frames = decoder.feed(data)
    decoder.check()
    return frames


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@unhurried
@given(client_frames)
def test_what_a_client_sends_comes_back_from_its_bytes(frame: wire.Frame) -> None:
    assert fed(wire.client_frames(), wire.encode(frame)) == [frame]


@unhurried
@given(server_frames)
def test_what_a_server_sends_comes_back_from_its_bytes(frame: wire.Frame) -> None:
    assert fed(wire.server_frames(), wire.encode(frame)) == [frame]


@unhurried
@given(client_frames)
def test_no_frame_of_a_client_is_longer_than_the_limit(frame: wire.Frame) -> None:
    assert len(wire.encode(frame)) - 4 <= wire.CLIENT_FRAME_BYTES_MAX


def test_the_longest_open_is_not_longer_than_the_limit() -> None:
    longest = "\x01" * wire.TEXT_CHARACTERS_MAX
    frame = machine.Open((1 << 63) - 1, (1 << 63) - 1, longest, longest, longest)
    assert fed(wire.client_frames(), wire.encode(frame)) == [frame]


@unhurried
@given(st.lists(client_frames, max_size=5), st.data())
def test_frames_are_found_however_the_stream_is_cut(frames: list[wire.Frame], data: st.DataObject) -> None:
    stream = b"".join(map(wire.encode, frames))
    decoder = wire.client_frames()
    found: list[wire.Frame] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += fed(decoder, stream[:cut])
        stream = stream[cut:]
    assert found == frames


def test_an_error_keeps_its_class_and_its_words_on_the_way() -> None:
    (frame,) = fed(wire.server_frames(), wire.encode(wire.Farewell(LockServerFull(clients=3))))
    assert isinstance(frame, wire.Farewell)
    assert isinstance(frame.error, LockServerFull)
    assert "3 clients" in str(frame.error)


def test_an_error_of_a_later_version_keeps_its_words() -> None:
    body = json.dumps(["Farewell", {"error": "LockSomethingNew", "message": "no more", "facts": {}}]).encode()
    (frame,) = fed(wire.server_frames(), framed(body))
    assert isinstance(frame, wire.Farewell)
    assert str(frame.error) == "no more"


def test_an_error_whose_facts_have_changed_keeps_its_words() -> None:
    body = json.dumps(["Farewell", {"error": "LockServerFull", "message": "no room", "facts": {}}]).encode()
    (frame,) = fed(wire.server_frames(), framed(body))
    assert isinstance(frame, wire.Farewell)
    assert str(frame.error) == "no room"


def test_a_frame_that_is_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(LockProtocolError) as caught:
        fed(wire.client_frames(), struct.pack(">I", wire.CLIENT_FRAME_BYTES_MAX + 1))
    assert str(wire.CLIENT_FRAME_BYTES_MAX) in str(caught.value)


def test_the_frames_before_one_that_cannot_be_read_are_returned() -> None:
    decoder = wire.client_frames()
    query = machine.Query(1, 1)
    assert decoder.feed(wire.encode(query) + framed(b"{}") + wire.encode(query)) == [query]
    with pytest.raises(LockProtocolError):
        decoder.check()


BAD = {
    "no JSON": b"\xff\xfe",
    "nothing": b"",
    "not a list": b'{"Query":1}',
    "an empty list": b"[]",
    "an unknown kind": b'["Reboot",1,2]',
    "a kind that is no text": b"[[1],2]",
    "a frame of the other side": b'["Done",1,2]',
    "the machine's own event": b'["Died",1]',
    "too few fields": b'["Query",1]',
    "too many fields": b'["Query",1,2,3]',
    "a number that is a truth": b'["Query",true,2]',
    "a number that is a fraction": b'["Query",1.0,2]',
    "a negative number": b'["Query",-1,2]',
    "a number of 64 bits": b'["Query",9223372036854775808,2]',
    "a number of 5000 digits": b'["Query",' + b"1" * 5000 + b",2]",
    "a mode that there is not": b'["Convert",1,1,1,6,false,null]',
    "a mode that is a truth": b'["Convert",1,1,1,true,false,null]',
    "a truth that is a number": b'["Convert",1,1,1,5,0,null]',
    "a short value block": b'["Convert",1,1,1,5,false,"00"]',
    "a value block that is no hexadecimal": b'["Convert",1,1,1,5,false,"' + b"x" * 64 + b'"]',
    "a text that is too long": b'["Open",1,1,"' + b"a" * 513 + b'","",""]',
    "half a character": b'["Open",1,1,"\\ud800","",""]',
    "deeply nested": b"[" * 8000,
}


@pytest.mark.parametrize("bad", BAD)
def test_a_frame_that_is_not_a_client_s_is_refused(bad: str) -> None:
    with pytest.raises(LockProtocolError):
        fed(wire.client_frames(), framed(BAD[bad]))


BAD_FROM_SERVER = {
    "an error that is none": b'["Farewell",3]',
    "an error without its parts": b'["Farewell",{}]',
    "an error with wrong facts": b'["Farewell",{"error":"LockRefused","message":"m","facts":3}]',
    "a resource without its parts": b'["Answer",1,1,[["r"]]]',
    "resources that are none": b'["Answer",1,1,7]',
}


@pytest.mark.parametrize("bad", BAD_FROM_SERVER)
def test_a_frame_that_is_not_a_server_s_is_refused(bad: str) -> None:
    with pytest.raises(LockProtocolError):
        fed(wire.server_frames(), framed(BAD_FROM_SERVER[bad]))


@unhurried
@given(st.binary(max_size=300))
def test_noise_is_refused_or_waited_on_and_never_a_traceback(noise: bytes) -> None:
    for decoder in (wire.client_frames(), wire.server_frames()):
        with contextlib.suppress(LockProtocolError):
            fed(decoder, noise)


@unhurried
@given(client_frames, st.data())
def test_a_damaged_frame_is_refused_or_read_and_never_a_traceback(frame: wire.Frame, data: st.DataObject) -> None:
    damaged = bytearray(wire.encode(frame))
    damaged[data.draw(st.integers(4, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(LockProtocolError):
        fed(wire.client_frames(), bytes(damaged))
