"""Every crash of every short sequence: nothing is lost that was promised."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from raidfs.errors import BadArguments
from raidfs.sim.crash.__main__ import main
from raidfs.sim.crash.campaign import Recipe, parse_recipe, replay, run_campaign
from raidfs.sim.crash.disk import PlainDisk
from raidfs.sim.crash.layout import LAYOUT
from raidfs.sim.crash.recording import Recording, record
from raidfs.sim.crash.reopened import Reopener, reopen, values_of
from raidfs.sim.crash.scenario import STEPS, Death, Scenario, parse_scenario, scenarios
from raidfs.sim.crash.states import Cut, Cutter, LegImage, Model, Pieces
from raidfs.sim.crash.survivor import broken_by_survivor, deaths
from raidfs.sim.disks import DiskOp

STATES = int(os.environ.get("RAIDFS_CRASH_STATES", "100000"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_crash_breaks_a_promise() -> None:
    result = run_campaign(STATES)
    assert result.failures == []
    assert len(result.states) >= STATES
    assert result.counts["deaths"] > STATES / 50


def test_a_scenario_and_a_recipe_are_what_was_written() -> None:
    for length in range(3):
        for scenario in scenarios(length):
            assert parse_scenario(str(scenario)) == scenario
    recipe = parse_recipe("w0,flush+b1/slow0@24S:8.0,12.1")
    assert recipe == Recipe(parse_scenario("w0,flush+b1/slow0"), 24, Model.STORAGE, ((8, 0), (12, 1)))
    assert parse_recipe(str(recipe)) == recipe
    for wrong in ("", "w9@1N:", "w0@N:", "w0@1X:", "w0/slow2@1N:", "w0@1N:1", "w0@1N:x.y"):
        with pytest.raises(BadArguments):
            parse_recipe(wrong)
    with pytest.raises(BadArguments, match="is no state"):
        replay(parse_recipe("w0@1N:99.0"))


def test_a_death_is_part_of_what_was_written() -> None:
    scenario = parse_scenario("w0+b1/slow0!b57:8.0,12.1")
    assert scenario.death == Death(1, 57, ((8, 0), (12, 1)))
    assert parse_scenario(str(scenario)) == scenario
    for wrong in ("w0/slow1!c5:", "w0!a:", "w0!a5:1"):
        with pytest.raises(BadArguments):
            parse_scenario(wrong)
    with pytest.raises(BadArguments):
        parse_recipe("w0/slow1!a9@3N:x")


def test_a_node_dies_at_every_write_boundary_and_with_every_part_of_its_writes() -> None:
    recording = record(parse_scenario("w0"))
    found = list(deaths(recording))
    assert len({death.step for death in found if death.machine == 0}) > 8
    landed = {death.landed for death in found if death.machine == 0}
    assert {len(choice) for choice in landed} == {0, 1, 2, 3, 4}, "two sectors on each of two legs"
    assert {death.landed for death in found if death.machine == 1} == {()}


def test_what_has_landed_of_a_dead_nodes_writes_is_there_and_the_survivor_goes_on() -> None:
    recording = record(parse_scenario("w0"))
    number = next(n for n, op in enumerate(recording.ops) if op.leg == 0 and op.offset >= LAYOUT.data_offset_bytes)
    death = next(death for death in deaths(recording) if death.landed == ((number, 1),))
    survived = record(Scenario(("w0",), (False,), death=death))
    assert survived.problem is None
    assert survived.settled
    first, last = (values_of(data) for _, data in survived.looks)
    assert first[:2] == (0, 1), "the second of two sectors is on the first leg"
    assert first[:2] == last[:2] == values_of(survived.final[0][LAYOUT.data_offset_bytes :])[:2]
    assert broken_by_survivor(survived) is None


def test_every_step_is_in_some_scenario() -> None:
    alone = {step for scenario in scenarios(1) for step in scenario.steps}
    assert {*STEPS} - alone == {"readd", "breadd", "sync"}  # there has to be something before
    for length in (2, 3):
        assert {step for scenario in scenarios(length) for step in scenario.steps} == {*STEPS}


def test_the_same_scenario_gives_the_same_recording() -> None:
    for text in ("w0+b1,die", "w1,fail+w0/slow0", "break,w0,stop"):
        first, again = record(parse_scenario(text)), record(parse_scenario(text))
        assert first == again
        assert first.problem is None


def cut_after_last_step(text: str, model: Model) -> tuple[Recording, list[Cut]]:
    recording = record(parse_scenario(text))
    cuts = [cut for cut in Cutter(recording).cuts(start=recording.last_step) if cut.model is model]
    return recording, cuts


def test_what_was_acknowledged_is_required_when_nodes_die_and_what_was_flushed_when_storage_does() -> None:
    _, cuts = cut_after_last_step("w0", Model.NODES)
    assert [cut.wanted[0] for cut in cuts][-2:] == [{0, 1}, {1}]
    assert cuts[-1].loose == ((), ())
    _, cuts = cut_after_last_step("w0", Model.STORAGE)
    assert cuts[-1].wanted[0] == {0, 1}
    assert [len(leg) for leg in cuts[-1].loose] == [1, 1]
    _, cuts = cut_after_last_step("w0,flush", Model.STORAGE)
    assert cuts[-1].wanted[:3] == (frozenset({1}), frozenset({1}), frozenset({0}))
    assert cuts[-1].loose == ((), ())
    _, cuts = cut_after_last_step("d1", Model.STORAGE)
    assert cuts[-1].wanted[10] == {1}


def test_a_flush_promises_the_writes_of_its_node_that_were_acknowledged_before() -> None:
    _, cuts = cut_after_last_step("b1,w0,flush", Model.STORAGE)
    assert cuts[-1].wanted[0] == {2}
    assert cuts[-1].wanted[12] == {0, 1}
    _, cuts = cut_after_last_step("w0+flush", Model.STORAGE)
    assert cuts[-1].wanted[0] == {0, 1}


def test_of_few_loose_pieces_every_subset_is_taken() -> None:
    recording, cuts = cut_after_last_step("w0", Model.STORAGE)
    choices = list(cuts[-1].choices(recording.ops))
    assert len(choices) == len(set(choices)) == 16  # two sectors on each of two legs
    assert len({cuts[-1].images(choice, recording.ops) for choice in choices}) == 16


def test_of_many_loose_writes_beginnings_and_single_ones_are_taken() -> None:
    recording, cuts = cut_after_last_step("w0,w1,b1", Model.STORAGE)
    there = [{number for number, _ in choice} for choice in cuts[-1].choices(recording.ops)]
    leg = cuts[-1].loose[0]
    others = {*cuts[-1].loose[1]}
    assert len(leg) == 3
    for kept in ([], leg[:1], leg[:2], leg, leg[1:], [leg[0], leg[2]], leg[1:2], leg[2:]):
        assert {*kept} in there
        assert {*kept} | others in there


def test_a_program_run_again_makes_the_state_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--states", "40", "--jobs", "1", "--failures", "1", "--plant", "bits-cleared-at-once"]) == 1
    said = capsys.readouterr().out
    recipe = said.partition("--replay '")[2].partition("'")[0]
    words = ["--replay", recipe, "--save", str(tmp_path)]
    assert main(words) == 0
    assert "no rule was broken" in capsys.readouterr().out
    assert main([*words, "--plant", "bits-cleared-at-once"]) == 1
    told = capsys.readouterr().out
    assert "---- cut here, model " in told
    assert "BROKEN " in told
    assert reopen([(tmp_path / f"disk{leg}.img").read_bytes() for leg in range(2)]).rule is None


def states_of(text: str) -> Iterator[tuple[LegImage, ...]]:
    recording, cuts = cut_after_last_step(text, Model.STORAGE)
    for cut in cuts:
        pieces = Pieces(cut, recording.ops)
        yield from map(pieces.legs, cut.choices(recording.ops))


@pytest.mark.parametrize("text", ["w1", "fail,w0+b1", "w0,die"])
def test_legs_with_the_same_metadata_are_opened_once_and_it_makes_no_difference(text: str) -> None:
    reopener = Reopener(checked_of=0)
    states = dict.fromkeys(states_of(text))
    for legs in states:
        assert reopener.outcome(legs) == reopen([leg.data for leg in legs])
    assert 0 < reopener.opened < len(states) / 2


def test_a_node_that_looks_at_what_users_wrote_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(disk: PlainDisk, op: DiskOp) -> tuple[int, bytes | None]:
        if op.data is not None and op.offset >= LAYOUT.data_offset_bytes and op.data[0] == 1:
            return op.length, None
        return effect(disk, op)

    recorded = list(states_of("w0"))
    effect = PlainDisk._effect
    monkeypatch.setattr(PlainDisk, "_effect", wrong)
    reopener = Reopener(checked_of=1)
    assert {reopener.outcome(legs).rule for legs in recorded} == {None, "data-blind"}


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("mdadm") is None, reason="mdadm is not installed")
@pytest.mark.parametrize("text", ["", "w0+fail", "break,w0+b1", "w0,die,b1", "d1+bfail,stop"])
def test_mdadm_accepts_what_is_left(text: str, tmp_path: Path) -> None:
    recording = record(parse_scenario(text))
    seen = set()
    for cut in Cutter(recording).cuts():
        for choice in cut.choices(recording.ops):
            for image in cut.images(choice, recording.ops):
                if image[: 16 << 10] in seen:
                    continue
                seen.add(image[: 16 << 10])
                path = tmp_path / "leg.img"
                path.write_bytes(image)
                done = subprocess.run(["mdadm", "--examine", path], capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
                assert "- correct" in done.stdout
                assert "State : " in done.stdout
    assert len(seen) > 3
