"""The two codecs of 32 bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raidfs.cluster.messages import PROTOCOL_VERSION, Message, MessageType, Result, SlotValue, result_text
from raidfs.lock.api import LVB_BYTES

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
u8 = st.integers(0, 255)
messages = st.builds(Message, u8, u8, u32, u64, u64, u32, u8)
values = st.builds(SlotValue, u64, u64, u32, u32, st.integers(0, 2**16 - 1), u8)


@given(messages)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert len(message.encode()) == LVB_BYTES
    assert Message.decode(message.encode()) == message


@given(values)
def test_a_slot_value_comes_back_as_it_was(value: SlotValue) -> None:
    assert len(value.encode()) == LVB_BYTES
    assert SlotValue.decode(value.encode()) == value


@given(messages, values, st.integers(0, 255))
def test_a_flipped_bit_makes_neither(message: Message, value: SlotValue, bit: int) -> None:
    for data, decode in ((message.encode(), Message.decode), (value.encode(), SlotValue.decode)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode(bytes(damaged)) is None


def test_a_block_of_zeros_is_neither() -> None:
    assert Message.decode(bytes(32)) is None
    assert SlotValue.decode(bytes(32)) is None


def test_the_layout_is_the_documented_one() -> None:
    data = Message(MessageType.RESYNCING, 3, 0x01020304, 5, 6, 7).encode()
    assert data[:4] == bytes([0xC5, 1, 3, PROTOCOL_VERSION])
    assert struct.unpack_from("<IQQI", data, 4) == (0x01020304, 5, 6, 7)
    data = SlotValue(1, 2, 3, 4, Result.SIZE).encode()
    assert struct.unpack_from("<QQI", data) == (1, 2, 3)
    assert struct.unpack_from("<IHBB", data, 24) == (4, Result.SIZE, PROTOCOL_VERSION, 0xC6)


def test_a_new_disks_uuid_travels_in_the_payload() -> None:
    uuid = bytes(range(16))
    low, high = struct.unpack("<QQ", uuid)
    assert Message(MessageType.NEWDISK, 0, low=low, high=high).device_uuid == uuid


@pytest.mark.parametrize("result", list(Result))
def test_every_result_has_words(result: Result) -> None:
    assert result_text(result) == result.text


def test_a_result_of_a_newer_version_has_words_too() -> None:
    assert "4711" in result_text(4711)
    assert Message(99, 0).type_name == "type 99"
