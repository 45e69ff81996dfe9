#!/bin/bash
# Ends what start-slurm.sh began.
D=${SLURM_SANDBOX:?the folder it lives in}; export SLURM_CONF=$D/slurm.conf
scancel -u "$(id -un)" 2>/dev/null; sleep 1
for f in "$D"/slurmd-n1.pid "$D"/slurmd-n2.pid "$D"/slurmctld.pid; do [ -s "$f" ] && kill -TERM "$(cat "$f")" 2>/dev/null; done
exit 0
