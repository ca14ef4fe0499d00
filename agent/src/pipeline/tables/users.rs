//! Which processes have which files mapped, both ways.

use rustc_hash::{FxHashMap, FxHashSet};

use crate::model::BinaryId;

/// Files by process and processes by file.
#[derive(Debug, Default)]
pub struct Users {
    files: FxHashMap<u32, Vec<BinaryId>>,
    processes: FxHashMap<BinaryId, FxHashSet<u32>>,
}

impl Users {
    /// A process has these files mapped now; `files` may have some twice. Returns those that it had
    /// not before.
    pub fn set(&mut self, pid: u32, mut files: Vec<BinaryId>) -> Vec<BinaryId> {
        files.sort_unstable();
        files.dedup();
        let before = if files.is_empty() {
            self.files.remove(&pid).unwrap_or_default()
        } else {
            self.files.insert(pid, files.clone()).unwrap_or_default()
        };
        for file in &before {
            if files.binary_search(file).is_err()
                && let Some(processes) = self.processes.get_mut(file)
            {
                processes.remove(&pid);
                if processes.is_empty() {
                    self.processes.remove(file);
                }
            }
        }
        files.retain(|file| before.binary_search(file).is_err());
        for file in &files {
            self.processes.entry(*file).or_default().insert(pid);
        }
        files
    }

    /// How many processes have a file mapped.
    pub fn count(&self, file: BinaryId) -> usize {
        self.processes.get(&file).map_or(0, FxHashSet::len)
    }

    /// The processes that have a file mapped.
    pub fn of(&self, file: BinaryId) -> impl Iterator<Item = u32> {
        self.processes.get(&file).into_iter().flatten().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let mut users = Users::default();
        let ids = |ids: &[u32]| ids.iter().map(|&id| BinaryId(id)).collect::<Vec<_>>();
        assert_eq!(users.set(7, ids(&[3, 1, 3])), ids(&[1, 3]));
        assert_eq!(users.set(8, ids(&[3])), ids(&[3]));
        assert_eq!(users.set(7, ids(&[3, 2])), ids(&[2]));
        assert_eq!(users.count(BinaryId(3)), 2);
        assert_eq!(users.of(BinaryId(2)).collect::<Vec<_>>(), [7]);
        assert_eq!(users.count(BinaryId(1)), 0);
        assert!(users.set(7, Vec::new()).is_empty());
        assert!(users.set(8, Vec::new()).is_empty());
        assert!(users.files.is_empty() && users.processes.is_empty());
    }
}
