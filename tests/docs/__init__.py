"""Every command, program and output that a document shows, checked or run.

``sh`` and ``python`` blocks are checked as they stand. What is said of a block stands in an HTML
comment before it, which no reader sees:

    <!-- run: WHAT -->           the ``sh`` block is run too, and ends well
    <!-- output: COMMAND -->      the ``text`` block is (part of) what COMMAND prints
    <!-- exact output: COMMAND --> the same, with its numbers
    <!-- output of: WHERE -->     printed in the test or by the program named, which is there
    <!-- no output: WHY -->       the ``text`` block is not what a command prints
    <!-- not run: WHY -->         the ``python`` block is read and not run

``python -m tests.docs --write`` puts what the commands print now in the place of what is shown.
"""
