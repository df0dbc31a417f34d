"""The arithmetic of a Grove layer in plain torch: no Megatron, no process group, no CUDA.

Read in this order: :mod:`.groups`, :mod:`.placement`, :mod:`.dispatch_plan`, :mod:`.permute`, and
:mod:`.reference`, which says the same in a few slow lines and is the oracle of the tests.

Shape suffixes, used in this package and in :mod:`grove_megatron.moe`:

    T  local tokens            E  experts            G  groups
    H  hidden size             R  expert-parallel ranks
    U  rows sent:     distinct (token, rank) pairs of this rank's tokens
    V  rows received: the same pairs seen from the receiving rank
    N  routed pairs on this rank: (row, local expert)
    M  adjugate pairs on this rank: (row, local group)
    L  experts (or groups) that live on one rank
"""
