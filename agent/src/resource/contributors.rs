//! Who uses a resource: processes and containers, by their share of what all use together.

use super::cgroup::{self, Group};
use super::cpu::TICKS_PER_S;
use super::interval::growth;
use super::tasks;
use crate::model::Contributor;
use crate::process::container_of_cgroup;

/// So many processes, and so many containers, are named.
const MAX_NAMED: usize = 5;

/// What everybody used in an interval.
#[derive(Debug, Default)]
pub struct Contributors {
    processes: Vec<Use>,
    containers: Vec<Use>,
}

/// What one used.
#[derive(Debug, Default)]
struct Use {
    who: String,
    cpu_ns: Option<u64>,
    wait_ns: Option<u64>,
    io_bytes: Option<u64>,
    memory_bytes: Option<u64>,
    /// Where a process of one thread was both times.
    core: Option<u32>,
}

impl Contributors {
    /// Compares two readings.
    #[must_use]
    pub fn new(
        tasks: (&tasks::Reading, &tasks::Reading),
        groups: (&cgroup::Reading, &cgroup::Reading),
    ) -> Self {
        let (before, now) = tasks;
        let processes = now
            .processes
            .iter()
            .filter_map(|(pid, process)| of_process(*pid, before, process))
            .collect();
        let (before, now) = groups;
        let containers = now
            .iter()
            .filter_map(|(path, group)| of_container(path, before.get(path), group))
            .collect();
        Self {
            processes,
            containers,
        }
    }

    /// By CPU time, of `all_ticks`.
    #[must_use]
    pub fn by_cpu(&self, all_ticks: u64) -> Vec<Contributor> {
        self.top(|one| one.cpu_ns, ns_of_ticks(all_ticks))
    }

    /// By CPU time on one core, of `all_ticks`. The kernel tells of a process only where it ran
    /// last: those are named that have one thread, were on the core both times, and can have been
    /// there all the time.
    #[must_use]
    pub fn on_core(&self, core: u32, all_ticks: u64) -> Vec<Contributor> {
        // Two ticks for the times at which the two were read.
        let most_ns = ns_of_ticks(all_ticks.saturating_add(2));
        let cpu_ns = |one: &Use| {
            let is_there = one.core == Some(core) && one.cpu_ns? <= most_ns;
            is_there.then_some(one.cpu_ns?)
        };
        top(&self.processes, cpu_ns, ns_of_ticks(all_ticks))
    }

    /// By resident memory, of `all_bytes`.
    #[must_use]
    pub fn by_memory(&self, all_bytes: u64) -> Vec<Contributor> {
        self.top(|one| one.memory_bytes, all_bytes)
    }

    /// By bytes read from and written to disks.
    #[must_use]
    pub fn by_io(&self) -> Vec<Contributor> {
        let bytes = |one: &Use| one.io_bytes;
        self.top(bytes, sum(&self.processes, bytes).unwrap_or(0))
    }

    /// Processes by time they waited for a CPU.
    #[must_use]
    pub fn by_wait(&self) -> Vec<Contributor> {
        self.top(|one| one.wait_ns, self.waited_ns().unwrap_or(0))
    }

    /// How long all processes waited for a CPU; `None` where the kernel does not count.
    #[must_use]
    pub fn waited_ns(&self) -> Option<u64> {
        sum(&self.processes, |one| one.wait_ns)
    }

    fn top(&self, amount: impl Fn(&Use) -> Option<u64>, whole: u64) -> Vec<Contributor> {
        let mut all = top(&self.processes, &amount, whole);
        all.extend(top(&self.containers, &amount, whole));
        all.sort_by(|a, b| b.share.total_cmp(&a.share));
        all
    }
}

fn ns_of_ticks(ticks: u64) -> u64 {
    ticks.saturating_mul(1_000_000_000 / TICKS_PER_S)
}

fn sum(uses: &[Use], amount: impl Fn(&Use) -> Option<u64>) -> Option<u64> {
    uses.iter().filter_map(amount).reduce(u64::saturating_add)
}

fn top(uses: &[Use], amount: impl Fn(&Use) -> Option<u64>, whole: u64) -> Vec<Contributor> {
    if whole == 0 {
        return Vec::new();
    }
    let mut found: Vec<_> = uses
        .iter()
        .filter_map(|one| Some((amount(one).filter(|amount| *amount > 0)?, &one.who)))
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found.truncate(MAX_NAMED);
    found
        .into_iter()
        .map(|(amount, who)| Contributor {
            who: who.clone(),
            share: (amount as f64 / whole as f64).min(1.0),
        })
        .collect()
}

/// What a process used; `None` of one that was there before without being seen.
fn of_process(pid: u32, before: &tasks::Reading, process: &tasks::Process) -> Option<Use> {
    let stat = &process.stat;
    let earlier = before
        .processes
        .get(&pid)
        .filter(|earlier| earlier.stat.start_ticks == stat.start_ticks);
    // One that started meanwhile used all that it did meanwhile.
    if earlier.is_none() && stat.start_ticks < before.uptime_ticks? {
        return None;
    }
    let since = |counter: fn(&tasks::Process) -> Option<u64>| {
        growth(earlier.map_or(Some(0), counter), counter(process))
    };
    let is_one = |process: &tasks::Process| process.stat.threads == 1;
    let stayed = earlier.is_some_and(|earlier| {
        is_one(earlier) && is_one(process) && earlier.stat.core == stat.core
    });
    Some(Use {
        who: format!("{}[{pid}]", stat.name),
        cpu_ns: since(|process| Some(process.stat.cpu_ticks)).map(ns_of_ticks),
        wait_ns: since(|process| process.wait_ns),
        io_bytes: since(|process| process.io_bytes),
        memory_bytes: stat
            .resident_pages
            .checked_mul(rustix::param::page_size() as u64),
        core: stayed.then_some(stat.core),
    })
}

fn of_container(path: &str, before: Option<&Group>, group: &Group) -> Option<Use> {
    let id = container_of_cgroup(path)?;
    // A container may have cgroups below its own: those are part of it.
    let (parent, _) = path.rsplit_once('/')?;
    if container_of_cgroup(parent) == Some(id) {
        return None;
    }
    Some(Use {
        who: format!("container {}", &id[..id.len().min(12)]),
        cpu_ns: growth(
            before.and_then(|before| before.cpu.used_ns),
            group.cpu.used_ns,
        ),
        io_bytes: growth(
            before.and_then(|before| before.io_bytes()),
            group.io_bytes(),
        ),
        memory_bytes: group.memory.working_set_bytes(),
        wait_ns: None,
        core: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::tasks::{Process, Stat};

    fn process(start_ticks: u64, cpu_ticks: u64, core: u32) -> Process {
        Process {
            stat: Stat {
                name: "p".into(),
                cpu_ticks,
                threads: 1,
                start_ticks,
                resident_pages: 1,
                core,
            },
            wait_ns: Some(cpu_ticks),
            io_bytes: None,
        }
    }

    fn reading(processes: &[(u32, Process)]) -> tasks::Reading {
        tasks::Reading {
            uptime_ticks: Some(1000),
            processes: processes.iter().cloned().collect(),
        }
    }

    fn named(before: &tasks::Reading, now: &tasks::Reading) -> Contributors {
        let groups = cgroup::Reading::default();
        Contributors::new((before, now), (&groups, &groups))
    }

    #[test]
    fn only_what_was_used_meanwhile_counts() {
        let before = reading(&[(1, process(5, 500, 0)), (2, process(6, 900, 0))]);
        let now = reading(&[
            (1, process(5, 530, 0)),   // Used 30.
            (2, process(1001, 20, 0)), // Another one with the same id.
            (3, process(1002, 10, 0)), // A new one.
            (4, process(7, 999, 0)),   // Was there, but not seen.
        ]);
        let found = named(&before, &now);
        let shares: Vec<_> = found
            .by_cpu(60)
            .into_iter()
            .map(|one| (one.who, (one.share * 60.0).round() as u64))
            .collect();
        let expected = [("p[1]", 30), ("p[2]", 20), ("p[3]", 10)];
        assert_eq!(shares, expected.map(|(who, share)| (who.to_owned(), share)));
        assert_eq!(found.waited_ns(), Some(60));
    }

    #[test]
    fn a_core_names_those_that_cannot_have_been_elsewhere() {
        let before = reading(&[
            (1, process(5, 0, 1)),
            (2, process(5, 0, 0)),
            (3, process(5, 0, 1)),
        ]);
        let now = reading(&[
            (1, process(5, 80, 1)),
            (2, process(5, 50, 1)),
            (3, process(5, 103, 1)),
        ]);
        let top = named(&before, &now).on_core(1, 100);
        assert_eq!(top.len(), 1);
        assert_eq!((&*top[0].who, top[0].share), ("p[1]", 0.8));
    }

    #[test]
    fn a_container_is_counted_once_and_only_containers_are() {
        let id = "0123456789abcdef".repeat(4);
        let group = |used_ns| Group {
            cpu: cgroup::Cpu {
                used_ns: Some(used_ns),
                ..cgroup::Cpu::default()
            },
            ..Group::default()
        };
        let groups = |used_ns| {
            let paths = [
                "/a.slice".to_owned(),
                format!("/docker-{id}.scope"),
                format!("/docker-{id}.scope/inner"),
            ];
            cgroup::Reading::from(paths.map(|path| (path, group(used_ns))))
        };
        let tasks = tasks::Reading::default();
        let found = Contributors::new((&tasks, &tasks), (&groups(0), &groups(5_000_000)));
        let top = found.by_cpu(1);
        assert_eq!(top.len(), 1);
        assert_eq!(
            (&*top[0].who, top[0].share),
            ("container 0123456789ab", 0.5)
        );
    }
}
