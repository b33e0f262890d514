"""What only a RunPod key, a card and the real weights can show, measured in one command.

record    the run so far, in a file: a later run goes on from it
budget    what the endpoints have cost at most, and the cap
context   endpoints of a run: deployed when a step needs one, deleted at the end
cloud     the steps on RunPod
local     the steps on a workstation
command   `make field-report`: runs the steps, deletes the endpoints, writes the report
table     the table of all reports, for the README
"""
