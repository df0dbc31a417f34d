"""What nvidia-smi prints, read."""

from grove_megatron.machines.cards import cards
from grove_megatron.machines.records import Card

GPUS = """0, GPU-aaa, 0, 0x0000000000000001
1, GPU-bbb, 3, 0x0000000000000068
2, GPU-ccc, [N/A], [N/A]
"""
USERS = """GPU-bbb, 4711, /usr/bin/python3, 512
GPU-bbb, 4712, [Not Found], [N/A]
"""


def test_cards_are_read() -> None:
    assert cards(lambda query: GPUS if query.startswith("--query-gpu=") else USERS) == (
        Card(index="0", uuid="aaa", uncorrected=0, slowed=(), users=()),
        Card(
            index="1",
            uuid="bbb",
            uncorrected=3,
            slowed=("hardware slowdown", "software thermal slowdown", "hardware thermal slowdown"),
            users=("process 4711 /usr/bin/python3 512 MiB", "process 4712 [Not Found] [N/A] MiB"),
        ),
        Card(index="2", uuid="ccc", uncorrected=None, slowed=(), users=()),
    )


def test_without_nvidia_smi_nothing_is_said() -> None:
    assert cards(lambda query: "") == ()
    assert cards(lambda query: "No devices were found\n") == ()
