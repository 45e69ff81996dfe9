#!/bin/bash
# Single-host Slurm for CI, as root, no systemd/cgroups/accounting. Two slurmd "nodes" on one host.
# needs: apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge
set -eu
D=${SLURM_SANDBOX:?the folder to live in}; H=$(hostname -s); CPUS=${SLURM_SANDBOX_CPUS:-2}; PORT=${SLURM_SANDBOX_PORT:-6817}
mkdir -p $D/{state,spool-n1,spool-n2,log}
cat > $D/slurm.conf <<C
ClusterName=sandbox
SlurmctldHost=$H(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmctldPort=$PORT
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool-%n
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
MailProg=/bin/true
InactiveLimit=0
KillWait=3
MinJobAge=300
PropagateResourceLimitsExcept=ALL
GresTypes=gpu
NodeName=n1 NodeHostname=$H NodeAddr=127.0.0.1 Port=$((PORT + 10184)) CPUs=$CPUS RealMemory=8000 Gres=gpu:1 State=UNKNOWN
NodeName=n2 NodeHostname=$H NodeAddr=127.0.0.1 Port=$((PORT + 10185)) CPUs=$CPUS RealMemory=8000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
${SLURM_SANDBOX_MORE:-}
C
GPU=/dev/nvidia0; [ -e $GPU ] || GPU=/dev/null  # asked for and given, though there is none
echo "Name=gpu File=$GPU" > $D/gres.conf
export SLURM_CONF=$D/slurm.conf
# munge
[ -s /etc/munge/munge.key ] || (umask 077; dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none; chown munge:munge /etc/munge/munge.key)
install -d -o munge -g munge -m 755 /run/munge
if ! munge -n >/dev/null 2>&1; then setsid runuser -u munge -- /usr/sbin/munged; fi
for i in $(seq 50); do munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && break; sleep 0.1; done
slurmctld -f $D/slurm.conf
for n in n1 n2; do slurmd -f $D/slurm.conf -N $n; done
for i in $(seq 150); do [ "$(sinfo -h -t idle -o %D 2>/dev/null | awk '{s+=$1}END{print s+0}')" = 2 ] && break; sleep 0.2; done
sinfo -N -l
echo "export SLURM_CONF=$D/slurm.conf"
