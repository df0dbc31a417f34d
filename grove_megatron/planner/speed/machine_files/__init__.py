"""What machines are made of, a file each, with a source for every number.

Only what somebody has published is there: a key that a file lacks nobody has measured in public.
One form throughout: a number is ``{ value, source }``, and a table is ``source``, ``columns`` and
``rows``. A source begins with a name of ``[sources]``, which says repository, commit and licence;
a path or a number of a thread follows.

Numbers:

- ``memory_gib``: of one GPU, as the vendor labels it.
- ``bf16_tflops``, ``fp8_tflops``: dense peak. ``bf16_matmul_tflops``, ``fp8_matmul_tflops``: the
  best matrix product that a search over shapes found, so more than a model reaches;
  ``bf16_matmul_k``: how many products of two numbers an element of it sums up.
- ``hbm_tb_s``: peak; ``hbm_share``: of it, for a copy, reads and writes counted.
- ``gpus_per_node``: of one machine; ``scale_up_gpus``: that reach each other without the network.
- ``scale_up_gb_s``: peak, one way, of one GPU to all others; ``scale_up_peer_gb_s`` to one, where
  that is less; ``scale_up_measured_gb_s``: a copy to one.
- ``scale_out_gb_s``, ``scale_out_measured_gb_s``: of the network, one way, of one GPU.
- ``latency_intra_us``, ``latency_inter_us``: of a wire. ``all_to_all_latency_us``: of that
  collective with nothing to send.

- ``chip``: the file that has attention of the same chip.

Tables:

- ``matmul``: shares of ``peak_tflops`` by shape, ``dense`` or ``grouped``: rows of a matrix, or of
  each expert, times ``in`` by ``out``; forward, and the gradients of input and weight.
- ``attention``: TFLOPS. With causal attention half of all pairs of tokens are counted, except in
  ``backward_full_tflops``, which was measured without a mask. A backward pass counts 2.5 forward
  ones.
- ``memory_bound``: shares of ``hbm_tb_s``.
- ``collective``: bus bandwidth as nccl-tests defines it, by bytes of the payload.
- ``collective_fit``: the share of a peak that large messages reach, and microseconds a call adds.
- ``dispatch``: tokens to experts and back, GB/s of the bytes that ``bytes_of`` names.
"""
