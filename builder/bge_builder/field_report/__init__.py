"""What only a RunPod key, a card and the real weights can show, measured in one command.

record       the run so far, in a file: a later run goes on from it
budget       what the endpoints have cost at most, and the cap
interrupts   signals and time limits
context      the endpoint of a run: deployed when a step needs one, deleted at the end
cloud        the steps on RunPod
local        the steps on a workstation
report       the written report, and the table of all for the README
command      `make field-report`: runs the steps, deletes the endpoint, writes the report
"""
