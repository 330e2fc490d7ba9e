"""Runs that computed otherwise never share a table: batch norm over shares of a batch, as precision."""

from __future__ import annotations

from leaderboard import find_faults
from leaderboard.claims.lookup import marks
from leaderboard.store.repeat import arithmetic, ranks_of, repeat_commands
from leaderboard.tables.sections import make_sections, section_key
from tests.harness.record_factory import make_record


def test_runs_that_normalised_shares_never_share_a_table_with_others():
    old = make_record(seed=0)
    one = make_record(seed=1, environment={"ranks": 1, "batch_norm_shares": 1})
    synchronised = make_record(seed=2, environment={"ranks": 4, "batch_norm_shares": 1})
    two, four = (make_record(seed=3, environment={"ranks": n, "batch_norm_shares": n}) for n in (2, 4))
    assert section_key(old)[-1] == "fp32"  # and so files and tables of older records are called as they were
    assert section_key(old) == section_key(one) == section_key(synchronised)
    records = [{**record, "file": f"{i}.json"} for i, record in enumerate((old, one, synchronised, two, four))]
    sections = make_sections(records)
    assert sorted(len(runs) for _, runs in sections) == [1, 1, 3]
    assert len({title for title, _ in sections}) == 3
    assert arithmetic(four) == marks(four)[-1] == "fp32-in-4-shares" and marks(old)[-1] == "fp32"
    assert [ranks_of(record) for record in (old, one, synchronised, two)] == [1, 1, 4, 2]
    assert [find_faults(record) for record in records[:1]] == [[]]
    assert find_faults(make_record(environment={"ranks": 0})) == [
        "environment.ranks must be a whole number of at least 1, got 0"
    ]


def test_a_run_of_several_processes_is_repeated_by_as_many():
    four = make_record(environment={"ranks": 4}, page={"changed": {"epochs": 3}})
    assert repeat_commands([four])[0].endswith('DEVICE=cpu SEED=0 RANKS=4 ARGS="epochs=3"')
    four["page"]["changed"] = {"model_args": {"a": 1}}
    assert "--seed 0 --ranks 4 --args" in repeat_commands([four])[0]
    assert "RANKS" not in repeat_commands([make_record()])[0]
