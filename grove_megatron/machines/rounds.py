"""Who speaks to whom, so that all do at once and nobody to two."""


def tournament[T](players: list[T]) -> list[list[tuple[T, T]]]:
    """Every pair once, in as few rounds as there can be; nobody is in two pairs of a round.

    The circle method: one stays, the others go round.

    Args:
        players: P of them; P - 1 rounds, or P where P is odd and one waits in each.
    """
    seats: list[T | None] = [*players, *[None] * (len(players) % 2)]
    half = len(seats) // 2
    rounds = []
    for _ in range(len(seats) - 1):
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        rounds.append([(a, b) for a, b in pairs if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def between_nodes(nodes: list[list[int]]) -> list[dict[int, int]]:
    """Rounds of a tournament of nodes, as ranks and their partners.

    The ranks of two nodes speak each to the one in its place, all at once, as their GPUs do, which
    often have a network card each. Where one node has fewer, the last of the other wait.

    Args:
        nodes: the ranks of every node.
    """
    found = []
    for pairs in tournament([*range(len(nodes))]):
        partners: dict[int, int] = {}
        for a, b in pairs:
            for one, other in zip(nodes[a], nodes[b], strict=False):
                partners |= {one: other, other: one}
        found.append(partners)
    return found


def inside_nodes(nodes: list[list[int]]) -> list[dict[int, int]]:
    """The same of the ranks of every node, whose tournaments go on at once.

    Args:
        nodes: the ranks of every node.
    """
    of_nodes = [tournament(ranks) for ranks in nodes]
    found: list[dict[int, int]] = [{} for _ in range(max(map(len, of_nodes), default=0))]
    for rounds in of_nodes:
        for partners, pairs in zip(found, rounds, strict=False):
            for one, other in pairs:
                partners |= {one: other, other: one}
    return found
