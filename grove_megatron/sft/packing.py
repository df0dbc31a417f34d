"""Which conversations share a sequence."""

from collections.abc import Sequence


def packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit of the longest first: each goes where it leaves the least room.

    Args:
        lengths: of the N conversations, in tokens; a longer one than ``capacity`` has a sequence of
            its own.
        capacity: tokens of a sequence.

    Returns:
        Sequences, as the numbers of what is in each; all N are in one.
    """
    found: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    # Bit r: some sequence has room for exactly r tokens.
    rooms = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = min(lengths[index], capacity)
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, pack = capacity, len(found)
            found.append([])
        found[pack].append(index)
        with_room[room - length].append(pack)
        rooms |= 1 << (room - length)
    return found
